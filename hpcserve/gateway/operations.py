"""Routes of operators: look at one model again, drain or stop one instance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from fastapi import APIRouter, Depends

from hpcserve.domain.instance import InstanceEvent, InstanceState
from hpcserve.domain.job import EndReason
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.domain.model import Model
from hpcserve.errors import RequestError
from hpcserve.gateway.identity import Identity, identified
from hpcserve.ports.clock import Clock
from hpcserve.ports.ledger import Ledger, Tx
from hpcserve.ports.notes import CLOSED


def routes(
    *,
    ledger: Ledger,
    clock: Clock,
    catalog: Callable[[], Mapping[str, Model]],
    wake: Callable[[], None],
) -> APIRouter:
    """Return the routes below `/hpcserve/v1/admin`; *wake* makes the controller look soon."""
    router = APIRouter(prefix="/hpcserve/v1/admin")

    @router.post("/models/{model}/retry")
    async def retry(model: str, who: Annotated[Identity, Depends(_admin)]) -> dict[str, object]:
        if model not in catalog():
            known = ", ".join(catalog()) or "none"
            raise RequestError(
                f"The catalog has no model {model!r}; it knows: {known}.", http_status=404
            )
        line = Transition(
            subject=Subject.MODEL,
            subject_id=model,
            at=clock.now(),
            event="forgiven",
            from_state=None,
            to_state=None,
            reason=f"{who.owner} lets it be tried again",
        )
        await ledger.transact(lambda tx: tx.events.append(line))
        wake()
        return {"model": model, "retry": True}

    @router.post("/close")
    async def close(who: Annotated[Identity, Depends(_admin)]) -> dict[str, object]:
        reason = f"{who.owner} closed the site at {clock.now():%Y-%m-%d %H:%M} UTC"
        await ledger.transact(lambda tx: tx.notes.put(CLOSED, {"reason": reason}))
        wake()
        return {"closed": True}

    @router.post("/open")
    async def open_(who: Annotated[Identity, Depends(_admin)]) -> dict[str, object]:  # noqa: ARG001 - must be one
        await ledger.transact(lambda tx: tx.notes.put(CLOSED, {}))
        wake()
        return {"closed": False}

    @router.post("/instances/{instance_id}/drain")
    async def drain(
        instance_id: str, who: Annotated[Identity, Depends(_admin)]
    ) -> dict[str, object]:
        return await _apply(instance_id, InstanceEvent.DRAIN, who)

    @router.post("/instances/{instance_id}/stop")
    async def stop(
        instance_id: str, who: Annotated[Identity, Depends(_admin)]
    ) -> dict[str, object]:
        return await _apply(instance_id, InstanceEvent.STOP, who)

    async def _apply(instance_id: str, event: InstanceEvent, who: Identity) -> dict[str, object]:
        def work(tx: Tx) -> InstanceState:
            instance = tx.instances.get(instance_id)
            if instance is None or not instance.is_live:
                raise RequestError(
                    f"No live instance has the id {instance_id!r}: `hpcserve status` lists them.",
                    http_status=404,
                )
            if event is InstanceEvent.DRAIN and instance.state is not InstanceState.READY:
                raise RequestError(
                    f"{instance_id} is {instance.state}: only a ready instance can drain; "
                    f"`hpcserve admin instance stop {instance_id}` ends it."
                )
            after, transition = instance.on(
                event,
                at=clock.now(),
                reason=f"{who.owner} asked for it",
                ending=instance.ending or EndReason.SCALED_IN,
            )
            tx.instances.save(after, transition)
            return after.state

        state = await ledger.transact(work)
        wake()
        return {"id": instance_id, "state": state}

    return router


def _admin(who: Annotated[Identity, Depends(identified)]) -> Identity:
    if not who.is_admin:
        raise RequestError("Only an administrator may do that.", http_status=403, code="forbidden")
    return who
