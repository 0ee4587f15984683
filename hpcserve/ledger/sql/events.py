"""Stories."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Connection, func, insert, select
from typing_extensions import override

from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.ledger.sql.rows import each_row, to_row
from hpcserve.ledger.tables import events as table
from hpcserve.ports.ledger import EventStore


class SqlEvents(EventStore):
    """Rows of `events`, in the order of `seq`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @override
    def append(self, transition: Transition) -> None:
        self._connection.execute(insert(table), to_row(table, transition, "seq"))

    @override
    def story(self, subject: Subject, subject_id: str) -> tuple[Transition, ...]:
        columns = [c for c in table.columns if c.name != "seq"]
        rows = self._connection.execute(
            select(*columns)
            .where(table.c.subject == subject, table.c.subject_id == subject_id)
            .order_by(table.c.seq)
        )
        return tuple(Transition(**row) for row in each_row(rows))

    @override
    def last(self, event: str) -> Mapping[str, datetime]:
        rows = self._connection.execute(
            select(table.c.subject_id, func.max(table.c.at).label("at"))
            .where(table.c.event == event)
            .group_by(table.c.subject_id)
        )
        return {row["subject_id"]: row["at"] for row in each_row(rows)}
