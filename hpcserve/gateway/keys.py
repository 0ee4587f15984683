"""Routes behind `hpcserve keys`: make, list and revoke API keys. A key is shown once."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from hpcserve.domain.key import PREFIX, ApiKey, digest
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.errors import RequestError
from hpcserve.gateway.identity import Identity, identified
from hpcserve.ports.clock import Clock, Ids
from hpcserve.ports.ledger import Ledger, Tx

#: characters of a key that its owner sees again later
SHOWN_PREFIX = len(PREFIX) + 4


class NewKey(BaseModel):
    """What a key is to be."""

    name: str = Field(default="", max_length=100)
    #: None: until revoked
    expires_in_s: int | None = Field(default=None, gt=0)


def routes(*, ledger: Ledger, clock: Clock, ids: Ids) -> APIRouter:
    """Return the routes below `/hpcserve/v1/keys`."""
    router = APIRouter(prefix="/hpcserve/v1/keys")

    @router.post("")
    async def create(
        wanted: NewKey, who: Annotated[Identity, Depends(identified)]
    ) -> dict[str, object]:
        secret = PREFIX + ids.secret()
        now = clock.now()
        expires_at = (
            None if wanted.expires_in_s is None else now + timedelta(seconds=wanted.expires_in_s)
        )
        key = ApiKey(
            id=ids.new("key"),
            digest=digest(secret),
            prefix=secret[:SHOWN_PREFIX],
            owner=who.owner,
            name=wanted.name,
            created_at=now,
            expires_at=expires_at,
            revoked_at=None,
        )

        def work(tx: Tx) -> None:
            tx.keys.add(key)
            tx.events.append(_line(key, "created", who, at=now))

        await ledger.transact(work)
        return {**show_key(key), "key": secret}

    @router.get("")
    async def list_(who: Annotated[Identity, Depends(identified)]) -> dict[str, object]:
        keys = await ledger.transact(lambda tx: tx.keys.list(who.owner))
        return {"data": [show_key(key) for key in keys]}

    @router.delete("/{key_id}")
    async def revoke(
        key_id: str, who: Annotated[Identity, Depends(identified)]
    ) -> dict[str, object]:
        now = clock.now()

        def work(tx: Tx) -> bool:
            mine = {key.id: key for key in tx.keys.list(None if who.is_admin else who.owner)}
            if key_id not in mine:
                return False
            tx.events.append(_line(mine[key_id], "revoked", who, at=now))
            return tx.keys.revoke(key_id, now)

        if not await ledger.transact(work):
            raise RequestError(
                f"You have no API key {key_id!r}: `hpcserve keys list` shows yours.",
                http_status=404,
                code="not_found",
            )
        return {"id": key_id, "revoked": True}

    return router


def show_key(key: ApiKey) -> dict[str, object]:
    """Return what may be known of a key after its making."""
    return {
        "id": key.id,
        "prefix": key.prefix,
        "owner": key.owner,
        "name": key.name,
        "created_at": key.created_at.isoformat(),
        "expires_at": key.expires_at.isoformat() if key.expires_at else None,
        "revoked_at": key.revoked_at.isoformat() if key.revoked_at else None,
    }


def _line(key: ApiKey, event: str, who: Identity, *, at: datetime) -> Transition:
    return Transition(
        subject=Subject.KEY,
        subject_id=key.id,
        at=at,
        event=event,
        from_state=None,
        to_state=None,
        reason=f"{event} by {who.owner}",
    )
