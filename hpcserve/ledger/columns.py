"""Column types: how the domain's values lie in the database, the same way on every database.

Times are whole microseconds since 1970 in UTC, so that they compare exactly and take no zone from a
server's settings. JSON is ASCII text. Prose (reasons, log lines) comes from outside and must never
stop a write: what a database cannot hold is replaced, not refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Generic, TypeVar

from sqlalchemy import BigInteger, Dialect, Text
from sqlalchemy.types import TypeDecorator, TypeEngine
from typing_extensions import override

from hpcserve.domain.batch import LineError
from hpcserve.domain.load import EngineLoad, GpuLoad

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

W = TypeVar("W", bound=StrEnum)


class Instant(TypeDecorator[datetime]):
    """A point in time, as microseconds since 1970."""

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = BigInteger
    cache_ok: bool | None = True

    @override
    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        del dialect
        return None if value is None else (value - EPOCH) // _MICROSECOND

    @override
    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        del dialect
        return None if value is None else EPOCH + value * _MICROSECOND


class Word(TypeDecorator[W], Generic[W]):
    """One word of an enumeration; a CHECK beside the column lists the words."""

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = Text
    cache_ok: bool | None = True

    def __init__(self, words: type[W]) -> None:
        """Take the enumeration."""
        super().__init__()
        self.words = words

    @override
    def process_bind_param(self, value: W | None, dialect: Dialect) -> str | None:
        del dialect
        return None if value is None else self.words(value).value

    @override
    def process_result_value(self, value: str | None, dialect: Dialect) -> W | None:
        del dialect
        return None if value is None else self.words(value)


class Prose(TypeDecorator[str]):
    """Text for people, possibly from a log: NUL and half characters become U+FFFD."""

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = Text
    cache_ok: bool | None = True

    @override
    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        del dialect
        if value is None:
            return None
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


class Json(TypeDecorator[Any]):
    """A JSON-able value, as ASCII text."""

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = Text
    cache_ok: bool | None = True

    @override
    def process_bind_param(self, value: object, dialect: Dialect) -> str | None:
        del dialect
        return None if value is None else json.dumps(_plain(value), separators=(",", ":"))

    @override
    def process_result_value(self, value: str | None, dialect: Dialect) -> object:
        del dialect
        return None if value is None else json.loads(value)


class Names(Json):
    """A tuple of strings."""

    cache_ok: bool | None = True

    @override
    def process_result_value(self, value: str | None, dialect: Dialect) -> object:
        names: Any = super().process_result_value(value, dialect)
        return tuple(names)


class Load(Json):
    """An EngineLoad."""

    cache_ok: bool | None = True

    @override
    def process_bind_param(self, value: object, dialect: Dialect) -> str | None:
        if isinstance(value, EngineLoad):
            return super().process_bind_param(asdict(value), dialect)
        return None

    @override
    def process_result_value(self, value: str | None, dialect: Dialect) -> object:
        fields: Any = super().process_result_value(value, dialect)
        if fields is None:
            return None
        return EngineLoad(**{**fields, "at": datetime.fromisoformat(fields["at"])})


class Gpus(Json):
    """A tuple of GpuLoad."""

    cache_ok: bool | None = True

    @override
    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return super().process_bind_param([asdict(gpu) for gpu in value], dialect)

    @override
    def process_result_value(self, value: str | None, dialect: Dialect) -> object:
        gpus: Any = super().process_result_value(value, dialect)
        return tuple(GpuLoad(**fields) for fields in gpus)


class LineErrors(Json):
    """A tuple of LineError."""

    cache_ok: bool | None = True

    @override
    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return super().process_bind_param([asdict(error) for error in value], dialect)

    @override
    def process_result_value(self, value: str | None, dialect: Dialect) -> object:
        errors: Any = super().process_result_value(value, dialect)
        return tuple(LineError(**fields) for fields in errors)


def _plain(value: object) -> object:
    """Return *value* with mappings as dicts and times as ISO 8601, for json."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return value
