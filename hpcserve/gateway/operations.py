"""Routes of operators: close and open the site, try a model again, drain or stop an instance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

Shown = dict[str, object]


def administrator(who: Annotated[Identity, Depends(identified)]) -> Identity:
    """Return who asks when that is an administrator (a FastAPI dependency)."""
    if not who.is_admin:
        raise RequestError("Only an administrator may do that.", http_status=403, code="forbidden")
    return who


Admin = Annotated[Identity, Depends(administrator)]


def routes(
    *,
    ledger: Ledger,
    clock: Clock,
    catalog: Callable[[], Mapping[str, Model]],
    wake: Callable[[], None],
) -> APIRouter:
    """Return the routes below `/hpcserve/v1/admin`; *wake* makes the controller look soon."""
    desk = _Desk(ledger=ledger, clock=clock, catalog=catalog, wake=wake)
    router = APIRouter(prefix="/hpcserve/v1/admin")
    router.post("/close")(desk.close)
    router.post("/open")(desk.open)
    router.post("/models/{model}/retry")(desk.retry)
    router.post("/instances/{instance_id}/drain")(desk.drain)
    router.post("/instances/{instance_id}/stop")(desk.stop)
    return router


@dataclass(frozen=True, slots=True, kw_only=True)
class _Desk:
    """One method a route."""

    ledger: Ledger
    clock: Clock
    catalog: Callable[[], Mapping[str, Model]]
    wake: Callable[[], None]

    async def close(self, who: Admin) -> Shown:
        """Let the controller end everything and submit nothing."""
        reason = f"{who.owner} closed the site at {self.clock.now():%Y-%m-%d %H:%M} UTC"
        await self.ledger.transact(lambda tx: tx.notes.put(CLOSED, {"reason": reason}))
        self.wake()
        return {"closed_because": reason}

    async def open(self, _: Admin) -> Shown:
        """Let the controller submit again."""
        await self.ledger.transact(lambda tx: tx.notes.put(CLOSED, {}))
        self.wake()
        return {"closed_because": None}

    async def retry(self, model: str, who: Admin) -> Shown:
        """Forget a model's faults."""
        if model not in self.catalog():
            known = ", ".join(self.catalog()) or "none"
            raise RequestError(
                f"The catalog has no model {model!r}; it knows: {known}.", http_status=404
            )
        line = Transition(
            subject=Subject.MODEL,
            subject_id=model,
            at=self.clock.now(),
            event="forgiven",
            from_state=None,
            to_state=None,
            reason=f"{who.owner} lets it be tried again",
        )
        await self.ledger.transact(lambda tx: tx.events.append(line))
        self.wake()
        return {"model": model, "retry": True}

    async def drain(self, instance_id: str, who: Admin) -> Shown:
        """Let an instance finish what it has and end."""
        return await self._apply(instance_id, InstanceEvent.DRAIN, who)

    async def stop(self, instance_id: str, who: Admin) -> Shown:
        """End an instance now."""
        return await self._apply(instance_id, InstanceEvent.STOP, who)

    async def _apply(self, instance_id: str, event: InstanceEvent, who: Identity) -> Shown:
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
                at=self.clock.now(),
                reason=f"{who.owner} asked for it",
                ending=instance.ending or EndReason.SCALED_IN,
            )
            tx.instances.save(after, transition)
            return after.state

        state = await self.ledger.transact(work)
        self.wake()
        return {"id": instance_id, "state": state}
