"""What a site's processes tell one another: demand, leadership, notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, case, func, insert, select, update
from typing_extensions import override

from hpcserve.domain.fleet import Demand
from hpcserve.errors import FencedError
from hpcserve.ledger.columns import EPOCH
from hpcserve.ledger.dialect import Dialect
from hpcserve.ledger.sql.rows import each_row
from hpcserve.ledger.tables import demand as demand_table
from hpcserve.ledger.tables import leadership as leadership_table
from hpcserve.ledger.tables import notes
from hpcserve.ports.ledger import DemandStore, Leadership, LeaderStore, NoteStore


class SqlDemand(DemandStore):
    """Rows of `demand`."""

    def __init__(self, connection: Connection, dialect: Dialect) -> None:
        self._connection = connection
        self._dialect = dialect

    @override
    def report(self, gateway_id: str, demand: Sequence[Demand]) -> None:
        if not demand:
            return
        statement = self._dialect.insert(demand_table)
        self._connection.execute(
            statement.on_conflict_do_update(
                index_elements=[demand_table.c.gateway_id, demand_table.c.model],
                set_={
                    name: statement.excluded[name] for name in ("asked_at", "running", "waiting")
                },
            ),
            [
                {
                    "gateway_id": gateway_id,
                    "model": one.model,
                    "asked_at": one.asked_at,
                    "running": one.running,
                    "waiting": one.waiting,
                }
                for one in demand
            ],
        )

    @override
    def read(self, since: datetime) -> tuple[Demand, ...]:
        is_fresh = demand_table.c.asked_at >= since
        rows = self._connection.execute(
            select(
                demand_table.c.model,
                func.max(demand_table.c.asked_at).label("asked_at"),
                func.sum(case((is_fresh, demand_table.c.running), else_=0)).label("running"),
                func.sum(case((is_fresh, demand_table.c.waiting), else_=0)).label("waiting"),
            )
            .group_by(demand_table.c.model)
            .order_by(demand_table.c.model)
        )
        return tuple(Demand(**row) for row in each_row(rows))


class SqlLeader(LeaderStore):
    """The row of `leadership`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @override
    def acquire(self, holder: str, now: datetime, ttl_s: float) -> Leadership | None:
        last = self._read(select(leadership_table).with_for_update())
        if last is not None and last.holder != holder and last.expires_at > now:
            return None
        is_renewal = last is not None and last.holder == holder and last.expires_at > now
        fence = 1 if last is None else last.fence + (not is_renewal)
        won = Leadership(holder=holder, fence=fence, expires_at=now + timedelta(seconds=ttl_s))
        if last is None:
            # two first leaders at once: the second one's insert is a conflict, and it looks again
            self._connection.execute(insert(leadership_table).values(slot=1, **_fields(won)))
        else:
            self._connection.execute(update(leadership_table).values(**_fields(won)))
        return won

    @override
    def check(self, leadership: Leadership, now: datetime) -> None:
        # the lock keeps another from taking over before this transaction is committed
        last = self._read(select(leadership_table).with_for_update(read=True))
        if (
            last is None
            or (last.holder, last.fence) != (leadership.holder, leadership.fence)
            or last.expires_at <= now
        ):
            raise FencedError(
                f"controller {leadership.holder} no longer leads (fence {leadership.fence});"
                " it must stop acting"
            )

    @override
    def resign(self, holder: str) -> None:
        self._connection.execute(
            update(leadership_table)
            .where(leadership_table.c.holder == holder)
            .values(expires_at=EPOCH)
        )

    @override
    def current(self) -> Leadership | None:
        return self._read(select(leadership_table))

    def _read(self, query: Select[Any]) -> Leadership | None:
        rows = each_row(self._connection.execute(query))
        if not rows:
            return None
        row = rows[0]
        return Leadership(holder=row["holder"], fence=row["fence"], expires_at=row["expires_at"])


def _fields(held: Leadership) -> dict[str, Any]:
    return {"holder": held.holder, "fence": held.fence, "expires_at": held.expires_at}


class SqlNotes(NoteStore):
    """Rows of `notes`."""

    def __init__(self, connection: Connection, dialect: Dialect) -> None:
        self._connection = connection
        self._dialect = dialect

    @override
    def put(self, name: str, value: Mapping[str, object]) -> None:
        statement = self._dialect.insert(notes).values(name=name, value=value)
        self._connection.execute(
            statement.on_conflict_do_update(
                index_elements=[notes.c.name], set_={"value": statement.excluded.value}
            )
        )

    @override
    def get(self, name: str) -> Mapping[str, object] | None:
        value: Mapping[str, object] | None = self._connection.execute(
            select(notes.c.value).where(notes.c.name == name)
        ).scalar_one_or_none()
        return value
