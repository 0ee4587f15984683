"""Carries a plan out: intent before act, and every act safe to repeat.

An instance is committed as REQUESTED before sbatch is called, with a token that travels in the
job's comment. A controller that dies in between leaves either an intent without a job, which ends
as LOST, or a job with a token, which the next controller finds again. Every transaction checks that
this controller still leads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar, final

from hpcserve.config import Config
from hpcserve.domain import credentials
from hpcserve.domain.instance import Instance, InstanceEvent, InstanceState, Role
from hpcserve.domain.job import AgentOrder, EndReason
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.domain.model import Model
from hpcserve.domain.plan import Cancel, Drain, Plan, Record, Stop, Submit
from hpcserve.errors import BackendError
from hpcserve.policy.placement import place
from hpcserve.ports.clock import Clock, Ids
from hpcserve.ports.cluster import Cluster, Refused
from hpcserve.ports.ledger import Leadership, Ledger, Tx

log = logging.getLogger(__name__)

T = TypeVar("T")


@final
class Actor:
    """The controller's hands."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        cluster: Cluster,
        clock: Clock,
        ids: Ids,
        config: Config,
        state_dir: Path,
        secret: bytes,
    ) -> None:
        """Take the world; *secret* is what the instances' keys are derived from."""
        self._ledger = ledger
        self._cluster = cluster
        self._clock = clock
        self._ids = ids
        self._config = config
        self._state_dir = state_dir
        self._secret = secret

    async def act(self, plan: Plan, models: Mapping[str, Model], leader: Leadership) -> None:
        """Carry out *plan*; stop early when the scheduler stops answering.

        Raises:
            FencedError: another controller leads now.

        """
        doomed: list[str] = []
        submits: list[Submit] = []
        for action in plan:
            match action:
                case Record():
                    await self._record(action, leader)
                case Drain():
                    await self._drain(action, leader)
                case Stop():
                    doomed.extend(await self._stop(action, leader))
                case Cancel():
                    log.warning("job %s is cancelled: %s", action.job_id, action.reason)
                    doomed.append(action.job_id)
                case Submit():
                    submits.append(action)
        try:
            if doomed:
                await self._cluster.cancel(doomed)
            for submit in submits:
                await self._submit(submit, models[submit.model], leader)
        except BackendError as error:
            # what was not done is planned again in the next tick
            log.warning("the scheduler does not take orders: %s", error.message)

    async def _transact(self, leader: Leadership, work: Callable[[Tx], T]) -> T:
        def led(tx: Tx) -> T:
            tx.leader.check(leader, self._clock.now())
            return work(tx)

        return await self._ledger.transact(led)

    async def _record(self, record: Record, leader: Leadership) -> None:
        def work(tx: Tx) -> None:
            current = tx.instances.get(record.instance.id)
            # changed by its agent since the snapshot: the next tick decides anew
            if current is not None and current.version == record.instance.version:
                tx.instances.save(record.instance, *record.transitions)

        await self._transact(leader, work)
        for line in record.transitions:
            log.info("%s is %s: %s", line.subject_id, line.to_state, line.reason)

    async def _drain(self, drain: Drain, leader: Leadership) -> None:
        now = self._clock.now()

        def work(tx: Tx) -> None:
            current = tx.instances.get(drain.instance.id)
            if current is None or current.state is not InstanceState.READY:
                return
            tx.instances.save(
                *current.on(InstanceEvent.DRAIN, at=now, reason=drain.reason, ending=drain.ending)
            )

        await self._transact(leader, work)
        log.info("%s drains: %s", drain.instance.id, drain.reason)

    async def _stop(self, stop: Stop, leader: Leadership) -> tuple[str, ...]:
        """Note the stop and return the job to cancel."""
        now = self._clock.now()

        def work(tx: Tx) -> Instance | None:
            current = tx.instances.get(stop.instance.id)
            if current is None or not current.is_live:
                return None
            after, transition = current.on(
                InstanceEvent.STOP,
                at=now,
                reason=stop.reason,
                ending=current.ending or stop.ending,
                stop_asked_at=now,
                message=current.message or (stop.reason if stop.ending.is_fault else ""),
            )
            tx.instances.save(after, transition)
            return after

        after = await self._transact(leader, work)
        log.info("%s is stopped: %s", stop.instance.id, stop.reason)
        return (after.job_id,) if after is not None and after.job_id is not None else ()

    async def _submit(self, submit: Submit, model: Model, leader: Leadership) -> None:
        instance_id = self._ids.new("inst")
        order = order_for(
            instance_id,
            model,
            submit.role,
            state_dir=self._state_dir,
            secret=self._secret,
            config=self._config,
            time_limit_s=submit.time_limit_s,
        )
        spec = place(
            model,
            submit.role,
            order,
            self._config.slurm,
            time_limit_s=submit.time_limit_s,
            time_min_s=submit.time_min_s,
        )
        now = self._clock.now()
        intent = Instance(
            id=instance_id,
            token=order.token,
            model=model.name,
            role=submit.role,
            state=InstanceState.REQUESTED,
            partition=spec.partition,
            gpus=spec.nodes * spec.gpus_per_node,
            time_limit_s=spec.time_limit_s,
            reason=submit.reason,
            requested_at=now,
            log_path=str(Path(order.instance_dir) / "job.log"),
        )
        requested = Transition(
            subject=Subject.INSTANCE,
            subject_id=instance_id,
            at=now,
            event="requested",
            from_state=None,
            to_state=intent.state,
            reason=submit.reason,
            detail={"model": model.name, "role": submit.role, "partition": spec.partition},
        )
        await self._transact(leader, lambda tx: tx.instances.add(intent, requested))
        answer = await self._cluster.submit(spec)
        await self._transact(leader, lambda tx: self._submitted(tx, instance_id, answer))

    def _submitted(self, tx: Tx, instance_id: str, answer: str | Refused) -> None:
        now = self._clock.now()
        current = tx.instances.get(instance_id)
        assert current is not None
        if isinstance(answer, Refused):
            log.warning("%s is refused: %s", instance_id, answer.message)
            changed = current.on(
                InstanceEvent.REJECTED,
                at=now,
                reason=f"the scheduler refuses it: {answer.message}",
                end_reason=EndReason.REJECTED,
                ended_at=now,
                message=answer.message,
            )
        else:
            log.info("%s is job %s", instance_id, answer)
            changed = current.on(
                InstanceEvent.SUBMITTED,
                at=now,
                reason=f"submitted as job {answer}",
                detail={"job_id": answer},
                job_id=answer,
                submitted_at=now,
            )
        tx.instances.save(*changed)


def order_for(
    instance_id: str,
    model: Model,
    role: Role,
    *,
    state_dir: Path,
    secret: bytes,
    config: Config,
    time_limit_s: int | None = None,
) -> AgentOrder:
    """Return what the agent of this instance must know."""
    return AgentOrder(
        instance_id=instance_id,
        token=instance_id,
        model=model,
        role=role,
        gateways_dir=str(state_dir / "gateways"),
        instance_dir=str(state_dir / "instances" / instance_id),
        control_key=credentials.control_key(secret, instance_id),
        engine_key=credentials.engine_key(secret, instance_id),
        settings={
            "agent": asdict(config.agent),
            "engine": asdict(config.engine),
            "time_limit_s": time_limit_s or model.time_limit_s,
            "notice_s": config.slurm.notice_s,
        },
    )
