"""Batches, with their counts."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, RowMapping, Select, insert, select, update
from typing_extensions import override

from hpcserve.domain.batch import (
    BATCH,
    BATCH_REQUEST,
    Backlog,
    Batch,
    BatchState,
    RequestCounts,
    TokenUsage,
)
from hpcserve.domain.lifecycle import Transition
from hpcserve.errors import ConflictError
from hpcserve.ledger.sql.events import SqlEvents
from hpcserve.ledger.sql.rows import each_row, to_row
from hpcserve.ledger.tables import batch_counts as counts
from hpcserve.ledger.tables import batches as table
from hpcserve.ports.ledger import BatchStore

_STATES = tuple(state.value for state in BATCH_REQUEST.states)
_OPEN = tuple(state for state in BATCH.states if state not in BATCH.terminal)
_BATCH = select(
    table, *(c for c in counts.columns if c.name not in ("batch_seq", "next_line"))
).join(counts, counts.c.batch_seq == table.c.seq)


class SqlBatches(BatchStore):
    """Rows of `batches`, each with its row of `batch_counts`."""

    def __init__(self, connection: Connection, events: SqlEvents) -> None:
        self._connection = connection
        self._events = events

    @override
    def add(self, batch: Batch, transition: Transition) -> Batch:
        seq: int = self._connection.execute(
            insert(table).values(**to_row(table, batch, "seq")).returning(table.c.seq)
        ).scalar_one()
        self._connection.execute(insert(counts).values(batch_seq=seq))
        self._events.append(transition)
        return self._read(_BATCH.where(table.c.seq == seq))[0]

    @override
    def get(self, batch_id: str) -> Batch | None:
        found = self._read(_BATCH.where(table.c.id == batch_id))
        return found[0] if found else None

    @override
    def by_idempotency_key(self, owner: str, key: str) -> Batch | None:
        found = self._read(_BATCH.where(table.c.owner == owner, table.c.idempotency_key == key))
        return found[0] if found else None

    @override
    def list(self, owner: str | None, *, after: str | None, limit: int) -> tuple[Batch, ...]:
        query = _BATCH
        if owner is not None:
            query = query.where(table.c.owner == owner)
        if after is not None:
            behind = select(table.c.seq).where(table.c.id == after).scalar_subquery()
            query = query.where(table.c.seq < behind)
        return self._read(query.order_by(table.c.seq.desc()).limit(limit))

    @override
    def open(self) -> tuple[Batch, ...]:
        return self._read(_BATCH.where(table.c.state.in_(_OPEN)).order_by(table.c.seq))

    @override
    def save(self, batch: Batch, *transitions: Transition) -> None:
        saved = self._connection.execute(
            update(table)
            .where(table.c.id == batch.id, table.c.version == batch.version)
            .values(**to_row(table, batch, "seq", "id", "version"), version=batch.version + 1)
        )
        if saved.rowcount != 1:
            raise ConflictError(
                f"batch {batch.id} is no longer at version {batch.version}; read it again"
            )
        for transition in transitions:
            self._events.append(transition)

    @override
    def progress(self, batch_id: str, *, lines: int, size_bytes: int) -> None:
        seq = select(table.c.seq).where(table.c.id == batch_id).scalar_subquery()
        self._connection.execute(
            update(counts)
            .where(counts.c.batch_seq == seq)
            .values(validated_lines=lines, validated_bytes=size_bytes)
        )

    @override
    def backlog(self) -> tuple[Backlog, ...]:
        rows = self._connection.execute(
            select(
                table.c.id.label("batch_id"),
                table.c.seq.label("batch_seq"),
                table.c.owner,
                table.c.model,
                table.c.deadline_at,
                table.c.created_at,
                counts.c.waiting,
                counts.c.leased,
            )
            .join(counts, counts.c.batch_seq == table.c.seq)
            .where(
                table.c.state == BatchState.IN_PROGRESS,
                counts.c.waiting + counts.c.leased > 0,
            )
            .order_by(table.c.deadline_at, table.c.seq)
        )
        return tuple(Backlog(**row) for row in each_row(rows))

    def _read(self, query: Select[Any]) -> tuple[Batch, ...]:
        return tuple(_from_row(row) for row in each_row(self._connection.execute(query)))


def _from_row(row: RowMapping) -> Batch:
    fields: dict[str, Any] = dict(row)
    by_state = {state: fields.pop(state) for state in _STATES}
    usage = TokenUsage(
        input_tokens=fields.pop("input_tokens"),
        cached_tokens=fields.pop("cached_tokens"),
        output_tokens=fields.pop("output_tokens"),
    )
    return Batch(
        **fields, counts=RequestCounts(total=sum(by_state.values()), **by_state), usage=usage
    )
