"""The control plane as agents see it: each word of an agent is applied to the ledger at once.

Rules:

- One word is one transaction. What it tells is a fact; the controller decides what follows, and is
  woken for it.
- Each answer says what to do. An instance that the ledger does not know, has ended or is stopping,
  or that another job has taken over, is told to exit: so a zombie ends at its next word.
- A heartbeat writes a transition only when something changed, and renews the instance's leases.
- The last word settles what is still leased: handed back without cost, unless the engine failed,
  when one of the requests may be why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from hpcserve.domain.instance import Instance, InstanceEvent, InstanceState
from hpcserve.domain.lifecycle import Transition
from hpcserve.domain.load import GpusAbsent
from hpcserve.ports.clock import Clock
from hpcserve.ports.control import (
    Ending,
    Grant,
    Heartbeat,
    Order,
    Outcome,
    Registration,
)
from hpcserve.ports.ledger import Ledger, Tx
from hpcserve.ports.work import Work

_S = InstanceState
_E = InstanceEvent
#: before the agent's first word
_UNHEARD = (_S.REQUESTED, _S.QUEUED, _S.ALLOCATED)
#: what an agent says of itself that the ledger takes over
_Story = tuple[Instance, tuple[Transition, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlService:
    """Answers all agents of the site."""

    ledger: Ledger
    work: Work
    clock: Clock
    lease_ttl_s: float
    #: makes the controller's next look come sooner
    wake: Callable[[], None]

    def of(self, instance_id: str, job_id: str) -> InstanceControl:
        """Return what the agent of this instance, in this job, may call."""
        return InstanceControl(self, instance_id, job_id)

    async def apply(
        self,
        instance_id: str,
        job_id: str,
        change: Callable[[Instance, datetime], _Story],
        besides: Callable[[Tx, datetime], None],
    ) -> Order:
        """Apply a word to an instance that it may speak for; return what its agent is to do.

        Args:
            instance_id: whose word it is.
            job_id: the job that it comes from.
            change: what the word does to the instance.
            besides: what it does to other rows, and to the columns that a save would overwrite.

        """
        now = self.clock.now()

        def work(tx: Tx) -> tuple[Order, bool]:
            instance = tx.instances.get(instance_id)
            if instance is None or not _speaks_for(instance, job_id):
                return Order.EXIT, False
            changed, story = change(instance, now)
            if story:
                tx.instances.save(changed, *story)
            besides(tx, now)
            return _order(changed), bool(story)

        order, is_news = await self.ledger.transact(work)
        if is_news:
            self.wake()
        return order


class InstanceControl:
    """The port Control for one instance."""

    def __init__(self, service: ControlService, instance_id: str, job_id: str) -> None:
        """Take who speaks."""
        self._service = service
        self._id = instance_id
        self._job_id = job_id

    async def register(self, registration: Registration) -> Order:
        """Note where the engine will listen."""
        return await self._apply(lambda instance, now: _registered(instance, registration, now))

    async def beat(self, heartbeat: Heartbeat) -> Order:
        """Note load and health, renew the leases."""
        load = heartbeat.load
        gpu_load = () if isinstance(heartbeat.gpus, GpusAbsent) else heartbeat.gpus
        is_busy = heartbeat.batch_running > 0 or (
            load is not None and load.running + load.waiting > 0
        )

        def besides(tx: Tx, now: datetime) -> None:
            tx.instances.heard(self._id, now, load, busy=is_busy, gpu_load=gpu_load)
            tx.requests.renew(self._id, now, self._service.lease_ttl_s)

        return await self._apply(lambda instance, now: _heard(instance, heartbeat, now), besides)

    async def draining(self, ending: Ending) -> Order:
        """Note that the agent takes no more work."""
        return await self._apply(lambda instance, now: _draining(instance, ending, now))

    async def ended(self, ending: Ending) -> Order:
        """Note the last word, and why."""

        def besides(tx: Tx, now: datetime) -> None:
            if ending.reason.is_fault:
                tx.requests.lapse(now, instance_ids=(self._id,))
            else:
                for lease_id in tx.requests.renew(self._id, now, self._service.lease_ttl_s):
                    tx.requests.release(lease_id=lease_id, instance_id=self._id, line_nos=None)

        await self._apply(lambda instance, now: _ended(instance, ending, now), besides)
        return Order.EXIT

    async def lease(self, limit: int, holding: Sequence[int]) -> Grant | None:
        """Lease requests to an instance that is READY; take back what its agent never got."""
        now = self._service.clock.now()

        def tidy(tx: Tx) -> Instance | None:
            instance = tx.instances.get(self._id)
            if instance is None or not _speaks_for(instance, self._job_id):
                return None
            if instance.state is not _S.READY:
                return None
            for lease_id in tx.requests.renew(self._id, now, self._service.lease_ttl_s):
                if lease_id not in holding:
                    tx.requests.release(lease_id=lease_id, instance_id=self._id, line_nos=None)
            return instance

        instance = await self._service.ledger.transact(tidy)
        return None if instance is None else await self._service.work.lease(instance, limit)

    async def settle(self, lease_id: int, outcomes: Sequence[Outcome]) -> frozenset[int]:
        """Commit results; the lease's fence keeps late writers out."""
        return await self._service.work.settle(self._id, lease_id, outcomes)

    async def release(self, lease_id: int, line_nos: Sequence[int] | None) -> None:
        """Take requests back."""
        await self._service.work.release(self._id, lease_id, line_nos)

    async def _apply(
        self,
        change: Callable[[Instance, datetime], _Story],
        besides: Callable[[Tx, datetime], None] = lambda _tx, _now: None,
    ) -> Order:
        return await self._service.apply(self._id, self._job_id, change, besides)


def _speaks_for(instance: Instance, job_id: str) -> bool:
    """Whether a word from this job counts for the instance."""
    return instance.is_live and instance.job_id in (None, job_id)


def _order(instance: Instance) -> Order:
    match instance.state:
        case _S.STOPPING | _S.ENDED:
            return Order.EXIT
        case _S.DRAINING:
            return Order.DRAIN
        case _:
            return Order.CONTINUE


def _registered(instance: Instance, said: Registration, now: datetime) -> _Story:
    told = replace(
        instance,
        job_id=said.job_id,
        host=said.host,
        port=said.port,
        log_path=said.log_path,
        ends_at=instance.ends_at or said.ends_at,
    )
    if told == instance and instance.state not in _UNHEARD:
        return instance, ()
    changed, line = told.on(
        _E.REGISTERED,
        at=now,
        reason=f"the agent on {said.node} says hello; its engine loads",
        detail={"job_id": said.job_id, "node": said.node, "port": said.port},
        heard_at=now,
    )
    return changed, (line,)


def _heard(instance: Instance, said: Heartbeat, now: datetime) -> _Story:
    lines: list[Transition] = []
    if instance.state is _S.UNREACHABLE:
        instance, line = instance.on(_E.HEARD, at=now, reason="the agent is heard again")
        lines.append(line)
    if instance.state is _S.LOADING and said.healthy and not said.draining:
        instance, line = instance.on(
            _E.HEALTHY,
            at=now,
            reason="the engine answers and generates" + said.stage.removeprefix("ready"),
            ready_at=instance.ready_at or now,
        )
        lines.append(line)
    elif instance.state is _S.READY and not said.healthy and not said.draining:
        instance, line = instance.on(
            _E.UNHEALTHY, at=now, reason=f"the engine fails its health check: {said.stage}"
        )
        lines.append(line)
    return instance, tuple(lines)


def _draining(instance: Instance, said: Ending, now: datetime) -> _Story:
    if instance.state in (_S.DRAINING, _S.STOPPING):
        return instance, ()
    # without a registration there is nothing to drain, and the table has no such event
    event = _E.STOP if instance.state in _UNHEARD else _E.DRAIN
    changed, line = instance.on(
        event, at=now, reason=said.message, ending=instance.ending or said.reason
    )
    return changed, (line,)


def _ended(instance: Instance, said: Ending, now: datetime) -> _Story:
    is_drained = instance.state is _S.DRAINING and not said.reason.is_fault
    changed, line = instance.on(
        _E.DRAINED if is_drained else _E.STOP,
        at=now,
        reason=said.message,
        # a decision that was taken before stands: a drained instance was scaled in
        ending=instance.ending or said.reason,
        message=said.message if said.reason.is_fault else instance.message,
    )
    return changed, (line,)
