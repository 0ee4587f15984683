"""What differs between SQLite and PostgreSQL; one file each fulfils it, all else is common.

Lines that a statement names come as a MATERIALIZED CTE that holds their whole key, the batch too.
It is a fence: from it a planner has one way only, to each line by its key. A planner that may see
`batch_seq = 7` beside it takes a batch for a few lines and reads it from end to end, since no
statistics can know of a batch that came a second ago.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from sqlalchemy import CTE, BindParameter, Column, ColumnElement, Connection, Table
from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
from sqlalchemy.dialects.sqlite import Insert as SqliteInsert
from sqlalchemy.exc import DBAPIError

from hpcserve.domain.batch import NewRequest, Result


class Dialect(Protocol):
    """One database's way of doing what SQL has no common way for."""

    def insert(self, table: Table) -> SqliteInsert | PostgresInsert:
        """Return an INSERT that knows ON CONFLICT."""
        ...

    def named(self, batch_seq: BindParameter[int]) -> CTE:
        """Return the numbers of the parameter `numbers` as lines of a batch.

        Its columns: `batch_seq, line_no`.
        """
        ...

    def among(self, column: Column[int]) -> ColumnElement[bool]:
        """Return the condition that *column* is among the numbers of the parameter `numbers`."""
        ...

    def numbers(self, numbers: Sequence[int]) -> object:
        """Return the parameter `numbers`: one value, however many there are."""
        ...

    def places(self, batch_seq: BindParameter[int]) -> CTE:
        """Return where the results of lines lie, as a table.

        Its columns: `batch_seq, line_no, result_offset, result_length`; its parameters come from
        `place_parameters`.
        """
        ...

    def place_parameters(self, results: Sequence[Result]) -> Mapping[str, Any]:
        """Return the parameters of `places`."""
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
