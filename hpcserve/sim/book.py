"""A fleet without a ledger: carries plans out on instances in memory, as the Actor does on rows.

For `study`, which takes a hundred thousand decisions; the whole-site simulation uses the ledger.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field, replace
from datetime import datetime

from hpcserve.config import Config
from hpcserve.domain.batch import Backlog
from hpcserve.domain.fleet import Demand, Fleet
from hpcserve.domain.instance import Instance, InstanceEvent, InstanceState, Role
from hpcserve.domain.job import EndReason, JobsView
from hpcserve.domain.model import Model
from hpcserve.domain.plan import Cancel, Drain, Plan, Record, Stop, Submit
from hpcserve.sim.slurm import Job, SlurmModel
from hpcserve.sim.world import START, at


@dataclass(frozen=True, slots=True)
class Noted:
    """One scaling action and its reason."""

    at_s: float
    action: str
    model: str
    reason: str


@dataclass(slots=True)
class Book:
    """The instances of a study."""

    config: Config
    slurm: SlurmModel
    models: dict[str, Model]
    live: dict[str, Instance] = field(default_factory=dict)
    ended: deque[Instance] = field(default_factory=deque)
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[Noted] = field(default_factory=list)
    _made: int = 0

    def fleet(
        self,
        now_s: float,
        demand: dict[str, Demand],
        backlog: tuple[Backlog, ...],
    ) -> Fleet:
        """Return the snapshot of this instant."""
        now = at(now_s)
        return Fleet(
            instances=tuple(self.live.values()),
            ended=tuple(self.ended),
            jobs=JobsView(asked_at=now, jobs=self.slurm.views()),
            accounted={},
            listening_since=START,
            partitions=self.slurm.describe(now_s),
            models=self.models,
            demand=demand,
            backlog=backlog,
            forgiven_at={},
            opportunistic_partition=self.config.slurm.opportunistic_partition,
        )

    def put(self, instance: Instance) -> None:
        """Store an instance as it is now."""
        if instance.is_live:
            self.live[instance.id] = instance
            return
        self.live.pop(instance.id, None)
        self.counts[f"ended {instance.end_reason}"] += 1
        self.ended.appendleft(instance)
        while len(self.ended) > self.config.controller.ended_shown:
            self.ended.pop()

    def say(self, instance_id: str, event: InstanceEvent, now: datetime, **changes: object) -> None:
        """Let an agent state a fact, if its instance is there."""
        instance = self.live.get(instance_id)
        if instance is not None:
            self._on(instance, event, now, **changes)

    def act(self, plan: Plan, now_s: float) -> list[Job]:
        """Carry a plan out; return the jobs that were cancelled while they ran."""
        now, cancelled = at(now_s), list[Job]()
        for action in plan:
            match action:
                case Record():
                    self.put(action.instance)
                case Drain():
                    self._note(now_s, "drain", action.instance.model, action.reason)
                    self._on(action.instance, InstanceEvent.DRAIN, now, ending=action.ending)
                case Stop():
                    self._note(now_s, "stop", action.instance.model, action.reason)
                    self._on(
                        action.instance,
                        InstanceEvent.STOP,
                        now,
                        ending=action.instance.ending or action.ending,
                        stop_asked_at=now,
                    )
                    if action.instance.job_id:
                        self._cancel(action.instance.job_id, now_s, cancelled)
                case Cancel():
                    self._cancel(action.job_id, now_s, cancelled)
                case Submit():
                    self._note(now_s, "submit", action.model, action.reason)
                    self._submit(action, now_s)
        return cancelled

    def _on(
        self, instance: Instance, event: InstanceEvent, now: datetime, **changes: object
    ) -> None:
        current = self.live.get(instance.id)
        if current is not None:
            after, _ = current.on(event, at=now, reason="", detail=None, **changes)
            self.put(after)

    def _cancel(self, job_id: str, now_s: float, cancelled: list[Job]) -> None:
        job = self.slurm.cancel(now_s, job_id)
        if job is not None:
            cancelled.append(job)

    def _submit(self, submit: Submit, now_s: float) -> None:
        model, now, slurm = self.models[submit.model], at(now_s), self.config.slurm
        partition = slurm.partition
        if submit.role is Role.BATCH:
            partition = slurm.opportunistic_partition or partition
        self._made += 1
        instance = Instance(
            id=f"inst-{self._made:06d}",
            token=f"inst-{self._made:06d}",
            model=model.name,
            role=submit.role,
            state=InstanceState.REQUESTED,
            partition=partition,
            gpus=model.nodes * model.gpus_per_node,
            time_limit_s=submit.time_limit_s or model.time_limit_s,
            reason=submit.reason,
            requested_at=now,
        )
        job = self.slurm.submit(
            now_s,
            token=instance.token,
            partition=partition,
            gpus=instance.gpus,
            limit_s=instance.time_limit_s,
            min_s=submit.time_min_s,
        )
        if isinstance(job, str):
            instance = replace(
                instance,
                state=InstanceState.ENDED,
                ended_at=now,
                end_reason=EndReason.REJECTED,
                message=job,
            )
        else:
            instance = replace(
                instance,
                state=InstanceState.QUEUED,
                job_id=job.id,
                submitted_at=now,
                time_limit_s=int(job.limit_s),
            )
        self.put(instance)

    def _note(self, now_s: float, action: str, model: str, reason: str) -> None:
        self.counts[action] += 1
        self.notes.append(Noted(now_s, action, model, reason))
