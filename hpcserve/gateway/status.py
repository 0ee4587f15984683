"""Routes behind `hpcserve status` and `hpcserve explain`: what is there, and why it is so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends

from hpcserve.domain.batch import Batch
from hpcserve.domain.instance import Instance
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.domain.model import Model
from hpcserve.errors import RequestError
from hpcserve.gateway.identity import Identity, identified
from hpcserve.ports.clock import Clock
from hpcserve.ports.ledger import Ledger, Tx
from hpcserve.ports.notes import CLOSED, CONTROLLER

#: ended instances and batches that one answer shows
SHOWN_MAX = 20

#: gateways report what is in flight every second or so
DEMAND_FRESH = timedelta(seconds=10)

Shown = dict[str, object]


def routes(
    *, ledger: Ledger, clock: Clock, catalog: Callable[[], Mapping[str, Model]]
) -> APIRouter:
    """Return the routes below `/hpcserve/v1`."""
    router = APIRouter(prefix="/hpcserve/v1")

    @router.get("/status")
    async def status(who: Annotated[Identity, Depends(identified)]) -> Shown:
        return await ledger.transact(lambda tx: _status(tx, who, clock.now(), catalog()))

    @router.get("/explain/{subject_id}")
    async def explain(subject_id: str, who: Annotated[Identity, Depends(identified)]) -> Shown:
        return await ledger.transact(lambda tx: _explain(tx, subject_id, who, catalog()))

    return router


def _status(tx: Tx, who: Identity, now: datetime, models: Mapping[str, Model]) -> Shown:
    note = tx.notes.get(CONTROLLER) or {}
    verdicts = note.get("models")
    live = tx.instances.live()
    return {
        "at": now.isoformat(),
        "controller": {key: value for key, value in note.items() if key != "models"},
        "closed_because": (tx.notes.get(CLOSED) or {}).get("reason"),
        "models": [
            {
                "name": model.name,
                "instances": sum(instance.model == model.name for instance in live),
                **(verdicts.get(model.name, {}) if isinstance(verdicts, Mapping) else {}),
            }
            for model in models.values()
        ],
        "instances": [show_instance(instance, now) for instance in live],
        "ended": [show_instance(instance, now) for instance in tx.instances.ended(SHOWN_MAX)],
        "batches": [
            show_batch(batch)
            for batch in tx.batches.list(
                None if who.is_admin else who.owner, after=None, limit=SHOWN_MAX
            )
        ],
        "demand": [
            {
                "model": demand.model,
                "asked_at": demand.asked_at.isoformat(),
                "running": demand.running,
                "waiting": demand.waiting,
            }
            for demand in tx.demand.read(now - DEMAND_FRESH)
        ],
    }


def _explain(tx: Tx, subject_id: str, who: Identity, models: Mapping[str, Model]) -> Shown:
    instance = tx.instances.get(subject_id)
    if instance is not None:
        return {
            "subject": Subject.INSTANCE,
            "id": subject_id,
            "facts": show_instance(instance, None),
            "story": _story(tx, Subject.INSTANCE, subject_id),
        }
    batch = tx.batches.get(subject_id)
    if batch is not None and (who.is_admin or batch.owner == who.owner):
        return {
            "subject": Subject.BATCH,
            "id": subject_id,
            "facts": show_batch(batch),
            "story": _story(tx, Subject.BATCH, subject_id),
        }
    if subject_id in models:
        note = tx.notes.get(CONTROLLER) or {}
        verdicts = note.get("models")
        return {
            "subject": Subject.MODEL,
            "id": subject_id,
            "facts": {
                **(verdicts.get(subject_id, {}) if isinstance(verdicts, Mapping) else {}),
                "instances": [i.id for i in tx.instances.live() if i.model == subject_id],
                "ended": [
                    f"{i.id} {i.end_reason}"
                    for i in tx.instances.ended(SHOWN_MAX)
                    if i.model == subject_id
                ],
            },
            "story": _story(tx, Subject.MODEL, subject_id),
        }
    raise RequestError(
        f"Nothing here has the id {subject_id!r}: give the id of an instance or of a batch of "
        "yours, or the name of a model, as `hpcserve status` shows them.",
        http_status=404,
        code="not_found",
    )


def _story(tx: Tx, subject: Subject, subject_id: str) -> list[Shown]:
    return [show_transition(line) for line in tx.events.story(subject, subject_id)]


def show_transition(line: Transition) -> Shown:
    """Return one line of a story as JSON."""
    return {
        "at": line.at.isoformat(),
        "event": line.event,
        "from": line.from_state,
        "to": line.to_state,
        "reason": line.reason,
        "detail": dict(line.detail),
    }


def show_instance(instance: Instance, now: datetime | None) -> Shown:
    """Return an instance as JSON; `left_s` is the time to its end."""
    end = instance.ends_at
    left_s = (end - now).total_seconds() if end is not None and now is not None else None
    load = instance.load
    return {
        "id": instance.id,
        "model": instance.model,
        "role": instance.role,
        "state": instance.state,
        "job_id": instance.job_id,
        "partition": instance.partition,
        "job_state": instance.job_state,
        "job_reason": instance.job_reason,
        "nodes": list(instance.nodes),
        "gpus": instance.gpus,
        "left_s": left_s if instance.is_live else None,
        "requested_at": _iso(instance.requested_at),
        "expected_start_at": _iso(instance.expected_start_at),
        "started_at": _iso(instance.started_at),
        "ready_at": _iso(instance.ready_at),
        "ends_at": _iso(instance.ends_at),
        "heard_at": _iso(instance.heard_at),
        "ended_at": _iso(instance.ended_at),
        "end_reason": instance.end_reason or instance.ending,
        "reason": instance.reason,
        "message": instance.message,
        "log_path": instance.log_path,
        "load": (
            {
                "running": load.running,
                "waiting": load.waiting,
                "kv_cache_used_ratio": load.kv_cache_used_ratio,
            }
            if load is not None
            else None
        ),
        "gpu_load": [asdict(gpu) for gpu in instance.gpu_load],
    }


def show_batch(batch: Batch) -> Shown:
    """Return what status shows of a batch."""
    return {
        "id": batch.id,
        "owner": batch.owner,
        "model": batch.model,
        "state": batch.state,
        "created_at": _iso(batch.created_at),
        "deadline_at": _iso(batch.deadline_at),
        "counts": asdict(batch.counts),
    }


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at is not None else None
