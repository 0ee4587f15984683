"""Instances."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Select,
    bindparam,
    case,
    insert,
    literal_column,
    or_,
    select,
    update,
)
from typing_extensions import override

from hpcserve.domain.instance import Instance, InstanceState
from hpcserve.domain.lifecycle import Transition
from hpcserve.domain.load import EngineLoad, GpuLoad
from hpcserve.errors import ConflictError
from hpcserve.ledger.sql.events import SqlEvents
from hpcserve.ledger.sql.rows import each_row, to_row
from hpcserve.ledger.tables import instances as table
from hpcserve.ports.ledger import InstanceStore

#: what a heartbeat brings, and a save must not put back
READINGS = ("load", "gpu_load")


def _later(column: Column[Any], given: object) -> ColumnElement[Any]:
    """Return the later of what is stored and what is given; None is earliest."""
    value = bindparam(None, given, type_=column.type)
    return case((or_(column > value, value.is_(None)), column), else_=value)


class SqlInstances(InstanceStore):
    """Rows of `instances`."""

    def __init__(self, connection: Connection, events: SqlEvents) -> None:
        self._connection = connection
        self._events = events

    @override
    def add(self, instance: Instance, transition: Transition) -> None:
        self._connection.execute(insert(table), to_row(table, instance))
        self._events.append(transition)

    @override
    def get(self, instance_id: str) -> Instance | None:
        found = self._read(select(table).where(table.c.id == instance_id))
        return found[0] if found else None

    @override
    def live(self) -> tuple[Instance, ...]:
        return self._read(
            select(table)
            # spelt out, so that the partial index can serve it
            .where(table.c.state != literal_column(f"'{InstanceState.ENDED}'"))
            .order_by(table.c.requested_at, table.c.id)
        )

    @override
    def ended(self, limit: int) -> tuple[Instance, ...]:
        return self._read(
            select(table)
            .where(table.c.state == InstanceState.ENDED)
            .order_by(table.c.ended_at.desc(), table.c.id.desc())
            .limit(limit)
        )

    @override
    def save(self, instance: Instance, *transitions: Transition) -> None:
        # a heartbeat that came since the instance was read must not be lost
        heard_since = table.c.heard_at > bindparam(
            None, instance.heard_at, type_=table.c.heard_at.type
        )
        saved = self._connection.execute(
            update(table)
            .where(table.c.id == instance.id, table.c.version == instance.version)
            .values(
                **to_row(table, instance, "id", "version", "heard_at", "busy_at", *READINGS),
                heard_at=_later(table.c.heard_at, instance.heard_at),
                busy_at=_later(table.c.busy_at, instance.busy_at),
                **{
                    name: case(
                        (heard_since, table.c[name]),
                        else_=bindparam(None, getattr(instance, name), type_=table.c[name].type),
                    )
                    for name in READINGS
                },
                version=instance.version + 1,
            )
        )
        if saved.rowcount != 1:
            raise ConflictError(
                f"instance {instance.id} is no longer at version {instance.version}; read it again"
            )
        for transition in transitions:
            self._events.append(transition)

    @override
    def heard(
        self,
        instance_id: str,
        at: datetime,
        load: EngineLoad | None,
        *,
        busy: bool,
        gpu_load: tuple[GpuLoad, ...] = (),
    ) -> None:
        # a heartbeat without a reading keeps the last one
        readings = {"load": load, "gpu_load": gpu_load}
        self._connection.execute(
            update(table)
            .where(
                table.c.id == instance_id,
                table.c.state != InstanceState.ENDED,
                or_(table.c.heard_at.is_(None), table.c.heard_at <= at),
            )
            .values(
                heard_at=at,
                busy_at=_later(table.c.busy_at, at if busy else None),
                **{
                    name: bindparam(None, reading, type_=table.c[name].type)
                    for name, reading in readings.items()
                    if reading
                },
            )
        )

    def _read(self, query: Select[Any]) -> tuple[Instance, ...]:
        return tuple(Instance(**row) for row in each_row(self._connection.execute(query)))
