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
from sqlalchemy.types import TypeDecorator

from hpcserve.domain.batch import LineError
from hpcserve.domain.load import EngineLoad

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

W = TypeVar("W", bound=StrEnum)


class Instant(TypeDecorator[datetime]):
    """A point in time, as microseconds since 1970."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Turn an aware datetime into microseconds; a naive one is a TypeError."""
        del dialect
        return None if value is None else (value - EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """Turn microseconds into a datetime in UTC."""
        del dialect
        return None if value is None else EPOCH + value * _MICROSECOND


class Word(TypeDecorator[W], Generic[W]):
    """One word of an enumeration; a CHECK beside the column lists the words."""

    impl = Text
    cache_ok = True

    def __init__(self, words: type[W]) -> None:
        """Take the enumeration."""
        super().__init__()
        self.words = words

    def process_bind_param(self, value: W | None, dialect: Dialect) -> str | None:
        """Turn the member into its word."""
        del dialect
        return None if value is None else self.words(value).value

    def process_result_value(self, value: str | None, dialect: Dialect) -> W | None:
        """Turn the word into its member."""
        del dialect
        return None if value is None else self.words(value)


class Prose(TypeDecorator[str]):
    """Text for people, possibly from a log: NUL and half characters become U+FFFD."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Replace what a text column cannot hold."""
        del dialect
        if value is None:
            return None
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


class Json(TypeDecorator[Any]):
    """A JSON-able value, as ASCII text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: object, dialect: Dialect) -> str | None:
        """Write the value."""
        del dialect
        return None if value is None else json.dumps(_plain(value), separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> object:
        """Read the value."""
        del dialect
        return None if value is None else json.loads(value)


class Names(Json):
    """A tuple of strings."""

    cache_ok = True

    def process_result_value(self, value: str | None, dialect: Dialect) -> object:
        """Read the list as a tuple."""
        return tuple(super().process_result_value(value or "[]", dialect))  # type: ignore[call-overload]  # json.loads of a list


class Load(Json):
    """An EngineLoad."""

    cache_ok = True

    def process_bind_param(self, value: object, dialect: Dialect) -> str | None:
        """Write its fields."""
        if isinstance(value, EngineLoad):
            return super().process_bind_param(asdict(value), dialect)
        return None

    def process_result_value(self, value: str | None, dialect: Dialect) -> object:
        """Read its fields."""
        fields: Any = super().process_result_value(value, dialect)
        if fields is None:
            return None
        return EngineLoad(**{**fields, "at": datetime.fromisoformat(fields["at"])})


class LineErrors(Json):
    """A tuple of LineError."""

    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ANN401 - the base takes any value
        """Write their fields."""
        return super().process_bind_param([asdict(error) for error in value], dialect)

    def process_result_value(self, value: str | None, dialect: Dialect) -> object:
        """Read their fields."""
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
