"""What differs between SQLite and PostgreSQL; one file each fulfils it, all else is common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from sqlalchemy import BindParameter, Column, ColumnElement, Connection, FromClause, Table
from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
from sqlalchemy.dialects.sqlite import Insert as SqliteInsert
from sqlalchemy.exc import DBAPIError

from hpcserve.domain.batch import NewRequest, RequestState, Result
from hpcserve.domain.batch import RequestEvent as Event

#: what each outcome makes of a leased line
OUTCOMES: Mapping[Event, RequestState] = {
    Event.ANSWERED: RequestState.COMPLETED,
    Event.REFUSED: RequestState.FAILED,
    Event.EXHAUSTED: RequestState.FAILED,
}


class Dialect(Protocol):
    """One database's way of doing what SQL has no common way for."""

    def insert(self, table: Table) -> SqliteInsert | PostgresInsert:
        """Return an INSERT that knows ON CONFLICT."""
        ...

    def among(self, column: Column[int]) -> ColumnElement[bool]:
        """Return the condition that *column* is among the numbers of the parameter `numbers`."""
        ...

    def numbers(self, numbers: Sequence[int]) -> object:
        """Return the parameter `numbers`: one value, however many there are."""
        ...

    def outcomes(self, batch_seq: BindParameter[int]) -> FromClause:
        """Return the outcomes of lines as a table.

        Its columns: `batch_seq, line_no, state, segment, result_offset, result_length`; its
        parameters come from `outcome_parameters`.
        """
        ...

    def outcome_parameters(self, results: Sequence[Result]) -> Mapping[str, Any]:
        """Return the parameters of `outcomes`."""
        ...

    def insert_lines(
        self, connection: Connection, batch_seq: int, requests: Iterable[NewRequest]
    ) -> int:
        """Insert lines in bulk, with bounded memory; return how many."""
        ...

    def is_passing(self, error: DBAPIError) -> bool:
        """Whether the same transaction may pass when it is run again: locks, lost connections."""
        ...

    def is_duplicate(self, error: DBAPIError) -> bool:
        """Whether a row with the same key exists."""
        ...
