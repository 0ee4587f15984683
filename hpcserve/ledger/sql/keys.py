"""API keys."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, func, insert, literal, select, update
from typing_extensions import override

from hpcserve.domain.key import ApiKey
from hpcserve.ledger.columns import Instant
from hpcserve.ledger.sql.rows import each_row, to_row
from hpcserve.ledger.tables import api_keys as table
from hpcserve.ports.ledger import KeyStore


class SqlKeys(KeyStore):
    """Rows of `api_keys`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @override
    def add(self, key: ApiKey) -> None:
        self._connection.execute(insert(table), to_row(table, key))

    @override
    def by_digest(self, digest: str) -> ApiKey | None:
        found = self._read(select(table).where(table.c.digest == digest))
        return found[0] if found else None

    @override
    def list(self, owner: str | None) -> tuple[ApiKey, ...]:
        query = select(table)
        if owner is not None:
            query = query.where(table.c.owner == owner)
        return self._read(query.order_by(table.c.created_at.desc(), table.c.id.desc()))

    @override
    def revoke(self, key_id: str, now: datetime) -> bool:
        revoked = self._connection.execute(
            update(table)
            .where(table.c.id == key_id)
            # the first revocation is the one that counts
            .values(revoked_at=func.coalesce(table.c.revoked_at, literal(now, Instant())))
        )
        return revoked.rowcount == 1

    def _read(self, query: Select[Any]) -> tuple[ApiKey, ...]:
        return tuple(ApiKey(**row) for row in each_row(self._connection.execute(query)))
