"""`/hpcserve/v1/batches/{id}/progress` and `/retry`: when it will be done; once more what failed.

The estimates are the leading controller's (`batching.estimates`); one that has not been renewed for
`STALE_S` is not shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict

from hpcserve.batching.again import Again
from hpcserve.batching.batches import Batches
from hpcserve.domain.batch import Batch
from hpcserve.domain.instance import Instance
from hpcserve.domain.model import Model
from hpcserve.gateway.batches import shape
from hpcserve.gateway.bodies import parsed
from hpcserve.gateway.identity import Identity, identified
from hpcserve.policy.estimate.why import why_not_more
from hpcserve.ports.clock import Clock
from hpcserve.ports.ledger import Ledger, Tx
from hpcserve.ports.notes import CLOSED, CONTROLLER, ESTIMATES

#: an older estimate is none: no controller leads, or it cannot reach the ledger
STALE_S = 60.0

Shown = dict[str, object]
User = Annotated[Identity, Depends(identified)]


class Retry(BaseModel):
    """Body of `POST .../retry`."""

    model_config = ConfigDict(extra="forbid")

    completion_window: str | None = None


def routes(
    batches: Batches,
    again: Again,
    *,
    ledger: Ledger,
    clock: Clock,
    catalog: Callable[[], Mapping[str, Model]],
    partition: str,
) -> APIRouter:
    """Return the routes; *partition* is where an instance goes that nobody has asked for yet."""
    router = APIRouter(prefix="/hpcserve/v1/batches")

    @router.get("/{batch_id}/progress")
    async def progress(batch_id: str, user: User) -> Shown:
        batch = await batches.get(None if user.is_admin else user.owner, batch_id)
        model = catalog().get(batch.model)
        now = clock.now()
        return await ledger.transact(lambda tx: _progress(tx, batch, model, partition, now))

    @router.post("/{batch_id}/retry")
    async def retry(request: Request, batch_id: str, user: User) -> Shown:
        body = parsed(Retry, await request.body())
        batch = await batches.get(user.owner, batch_id)
        return shape(await again.retry(batch, body.completion_window or batch.completion_window))

    return router


def _progress(tx: Tx, batch: Batch, model: Model | None, partition: str, now: datetime) -> Shown:
    controller = tx.notes.get(CONTROLLER) or {}
    live = [i for i in tx.instances.live() if i.model == batch.model]
    estimate = None if batch.is_terminal else _estimate(tx.notes.get(ESTIMATES), batch.id, now)
    why = ""
    if model is not None and not batch.is_terminal:
        verdicts = controller.get("models")
        verdict = verdicts.get(model.name) if isinstance(verdicts, Mapping) else None
        why = why_not_more(
            model,
            live,
            trouble=str(verdict["reason"]) if isinstance(verdict, Mapping) else "",
            closed=str((tx.notes.get(CLOSED) or {}).get("reason") or ""),
            in_time=bool(estimate["in_time"]) if estimate else None,
            wanted=str(estimate["scaling"]) if estimate else "",
        )
    return {
        "batch": shape(batch),
        "estimate": estimate,
        "instances": [_instance(i) for i in live],
        "why_not_more": why,
        "where": _where(live, partition, str(controller.get("cluster") or "")),
    }


def _estimate(
    note: Mapping[str, object] | None, batch_id: str, now: datetime
) -> Mapping[str, object] | None:
    if note is None:
        return None
    age_s = (now - datetime.fromisoformat(str(note["at"]))).total_seconds()
    known = note["batches"]
    if age_s > STALE_S or not isinstance(known, Mapping):
        return None
    estimate = known.get(batch_id)
    return estimate if isinstance(estimate, Mapping) else None


def _instance(instance: Instance) -> Shown:
    return {
        "id": instance.id,
        "state": instance.state,
        "role": instance.role,
        "partition": instance.partition,
        "reason": instance.reason,
    }


def _where(live: list[Instance], partition: str, cluster: str) -> str:
    """Return where the work is or will be done, as a person says it."""
    names = sorted({i.partition for i in live if i.partition}) or ([partition] if partition else [])
    where = f"partition {', '.join(names)}" if names else "the default partition"
    return f"{where} of {cluster}" if cluster else where
