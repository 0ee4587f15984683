"""Files of the Files API, and the segments that hold result bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, delete, insert, select
from typing_extensions import override

from hpcserve.domain.batch import InputFile
from hpcserve.ledger.sql.rows import each_row, to_row
from hpcserve.ledger.tables import files as table
from hpcserve.ledger.tables import segments as segment_table
from hpcserve.ports.ledger import FileStore, SegmentStore


class SqlFiles(FileStore):
    """Rows of `files`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @override
    def add(self, file: InputFile) -> None:
        self._connection.execute(insert(table), to_row(table, file))

    @override
    def get(self, file_id: str) -> InputFile | None:
        found = self._read(select(table).where(table.c.id == file_id))
        return found[0] if found else None

    @override
    def list(self, owner: str, *, purpose: str | None) -> tuple[InputFile, ...]:
        query = select(table).where(table.c.owner == owner)
        if purpose is not None:
            query = query.where(table.c.purpose == purpose)
        return self._read(query.order_by(table.c.created_at.desc(), table.c.id.desc()))

    @override
    def delete(self, file_id: str) -> None:
        self._connection.execute(delete(table).where(table.c.id == file_id))

    @override
    def expired(self, now: datetime, limit: int) -> tuple[InputFile, ...]:
        return self._read(
            select(table)
            .where(table.c.expires_at <= now)
            .order_by(table.c.expires_at, table.c.id)
            .limit(limit)
        )

    def _read(self, query: Select[Any]) -> tuple[InputFile, ...]:
        return tuple(InputFile(**row) for row in each_row(self._connection.execute(query)))


class SqlSegments(SegmentStore):
    """Rows of `segments`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @override
    def add(self, path: str) -> int:
        number: int = self._connection.execute(
            insert(segment_table).values(path=path).returning(segment_table.c.number)
        ).scalar_one()
        return number

    @override
    def paths(self, segments: Sequence[int]) -> Mapping[int, str]:
        rows = self._connection.execute(
            select(segment_table).where(segment_table.c.number.in_(segments))
        )
        return {row["number"]: row["path"] for row in each_row(rows)}
