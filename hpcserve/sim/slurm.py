"""A model of Slurm in plain seconds: partitions, queue wait, walltime, preemption, node failures.

Rules:

- A job becomes eligible after a wait drawn when it is submitted (other people's jobs are that
  wait), and starts when its partition has GPUs for it; among eligible ones the oldest first.
  Backfill: a wait is drawn for the reference limit and is in proportion shorter for a shorter
  limit, as short jobs fit into holes; a job with `time_min_s` waits, and runs, as the shortest.
- A partition offers the GPUs that its `idle` series leaves. When it leaves fewer than are held, the
  youngest jobs are preempted: they end after the partition's grace.
- A job that is over stays listed for `KEEP_S`, like MinJobAge.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hpcserve.domain.job import EndReason, JobPhase, JobView, Partition
from hpcserve.sim.world import at

#: an ended job is listed for so long, s
KEEP_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """A log-normal queue wait; p50 0 means none."""

    p50_s: float = 0.0
    p90_s: float = 0.0
    #: the time limit that these waits were seen with
    limit_s: float = 4 * 3600.0

    def draw(self, rng: random.Random, limit_s: float) -> float:
        """Return the wait of one job."""
        z = rng.gauss(0.0, 1.0)
        if self.p50_s <= 0:
            return 0.0
        sigma = math.log(max(self.p90_s, self.p50_s) / self.p50_s) / 1.2815515655
        return self.p50_s * math.exp(sigma * z) * min(1.0, limit_s / self.limit_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A step function of time that begins anew at its end."""

    times_s: tuple[float, ...]
    values: tuple[float, ...]
    period_s: float

    def at(self, now_s: float) -> float:
        """Return the value at a time."""
        index = bisect_right(self.times_s, now_s % self.period_s) - 1
        return self.values[max(0, index)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimPartition:
    """One partition."""

    name: str
    gpus: int
    wait: Wait = Wait()
    #: GPUs that other people leave; None: all
    idle: Series | None = None
    tier: int = 1
    #: jobs here may be preempted, with so much notice
    preemptible: bool = False
    grace_s: float = 60.0
    max_time_s: int = 7 * 24 * 3600


@dataclass(slots=True, kw_only=True)
class Job:
    """One job; the only thing here that changes."""

    id: str
    token: str
    partition: SimPartition
    gpus: int
    limit_s: float
    submitted_s: float
    eligible_s: float
    phase: JobPhase = JobPhase.PENDING
    started_s: float | None = None
    ends_s: float = math.inf
    end_reason: EndReason | None = None
    #: told to go: preempted at `ends_s`
    preempted: bool = False
    view: JobView | None = None


@dataclass(slots=True)
class Changes:
    """What one advance did."""

    started: list[Job] = field(default_factory=list)
    #: told that they will be preempted
    warned: list[Job] = field(default_factory=list)
    ended: list[Job] = field(default_factory=list)


_WORDS = {
    None: "COMPLETED",
    EndReason.EXPIRED: "TIMEOUT",
    EndReason.PREEMPTED: "PREEMPTED",
    EndReason.NODE_FAILED: "NODE_FAIL",
    EndReason.CRASHED: "FAILED",
    EndReason.CANCELLED_OUTSIDE: "CANCELLED",
}


class SlurmModel:
    """The cluster of a simulation."""

    def __init__(self, partitions: Sequence[SimPartition], rng: random.Random) -> None:
        """Take the partitions, the first of which is the default."""
        self.partitions = {partition.name: partition for partition in partitions}
        self._default = partitions[0]
        self._rng = rng
        self._submitted = 0
        self._jobs: dict[str, Job] = {}
        #: GPUs held, by partition
        self.held: dict[str, int] = dict.fromkeys(self.partitions, 0)

    def submit(
        self,
        now_s: float,
        *,
        token: str,
        partition: str | None,
        gpus: int,
        limit_s: float,
        min_s: float | None = None,
    ) -> Job | str:
        """Queue a job, or return why it is refused."""
        where = self.partitions.get(partition) if partition else self._default
        if where is None:
            return f"invalid partition specified: {partition}"
        if limit_s > where.max_time_s:
            return "Requested time limit is invalid (missing or exceeds some limit)"
        if gpus > where.gpus:
            return "Requested node configuration is not available"
        limit_s = min_s or limit_s
        self._submitted += 1
        job = Job(
            id=str(self._submitted),
            token=token,
            partition=where,
            gpus=gpus,
            limit_s=limit_s,
            submitted_s=now_s,
            eligible_s=now_s + where.wait.draw(self._rng, limit_s),
        )
        self._jobs[job.id] = job
        return job

    def cancel(self, now_s: float, job_id: str) -> Job | None:
        """End a job that is not over."""
        job = self._jobs.get(job_id)
        if job is None or job.phase is JobPhase.GONE:
            return None
        self.end(job, now_s, EndReason.CANCELLED_OUTSIDE)
        return job

    def end(self, job: Job, now_s: float, reason: EndReason | None) -> None:
        """Let a job be over; None is exit 0."""
        if job.phase is JobPhase.HELD:
            self.held[job.partition.name] -= job.gpus
        job.phase = JobPhase.GONE
        job.ends_s = now_s
        job.end_reason = reason
        job.view = None

    def advance(self, now_s: float) -> Changes:
        """Bring the cluster to *now_s*."""
        changes = Changes()
        for job in list(self._jobs.values()):
            if job.phase is JobPhase.GONE:
                if now_s - job.ends_s > KEEP_S:
                    del self._jobs[job.id]
            elif job.phase is JobPhase.HELD and job.ends_s <= now_s:
                reason = EndReason.PREEMPTED if job.preempted else EndReason.EXPIRED
                self.end(job, now_s, reason)
                changes.ended.append(job)
        for partition in self.partitions.values():
            self._preempt(partition, now_s, changes)
            self._start(partition, now_s, changes)
        return changes

    def offered(self, partition: SimPartition, now_s: float) -> int:
        """Return the GPUs that other people leave to us."""
        if partition.idle is None:
            return partition.gpus
        return min(partition.gpus, int(partition.idle.at(now_s)))

    def preempt(self, job: Job, now_s: float) -> None:
        """Tell a running job that it ends after the grace."""
        job.preempted = True
        job.ends_s = min(job.ends_s, now_s + job.partition.grace_s)
        job.view = None

    def _preempt(self, partition: SimPartition, now_s: float, changes: Changes) -> None:
        if not partition.preemptible:
            return
        over = self.held[partition.name] - self.offered(partition, now_s)
        if over <= 0:
            return
        running = [j for j in self.listed() if j.partition is partition and _holds(j)]
        over -= sum(job.gpus for job in running if job.preempted)
        for job in sorted(running, key=lambda j: (-(j.started_s or 0.0), j.id)):
            if over <= 0:
                break
            if not job.preempted:
                self.preempt(job, now_s)
                over -= job.gpus
                changes.warned.append(job)

    def _start(self, partition: SimPartition, now_s: float, changes: Changes) -> None:
        free = self.offered(partition, now_s) - self.held[partition.name]
        if free <= 0:
            return
        for job in self._jobs.values():
            if (
                job.partition is partition
                and job.phase is JobPhase.PENDING
                and job.eligible_s <= now_s
                and job.gpus <= free
            ):
                free -= job.gpus
                self.held[partition.name] += job.gpus
                job.phase = JobPhase.HELD
                job.started_s = now_s
                job.ends_s = now_s + job.limit_s
                job.view = None
                changes.started.append(job)

    def listed(self) -> Iterable[Job]:
        """Return the jobs that squeue shows, oldest first."""
        return self._jobs.values()

    def get(self, job_id: str) -> Job | None:
        """Return one job."""
        return self._jobs.get(job_id)

    def views(self) -> dict[str, JobView]:
        """Return what squeue says, by token."""
        return {job.token: _view(job) for job in self._jobs.values()}

    def describe(self, now_s: float) -> tuple[Partition, ...]:
        """Return what sinfo says."""
        return tuple(
            Partition(
                name=partition.name,
                is_default=partition is self._default,
                is_up=True,
                max_time_s=partition.max_time_s,
                priority_tier=partition.tier,
                preempt_mode="cancel" if partition.preemptible else "off",
                grace_s=int(partition.grace_s),
                nodes_total=partition.gpus,
                nodes_idle=free,
                gpus_total=partition.gpus,
                gpus_idle=free,
            )
            for partition in self.partitions.values()
            for free in [max(0, self.offered(partition, now_s) - self.held[partition.name])]
        )


def _holds(job: Job) -> bool:
    return job.phase is JobPhase.HELD


def _view(job: Job) -> JobView:
    if job.view is None:
        started = job.started_s is not None
        word = {JobPhase.PENDING: "PENDING", JobPhase.HELD: "RUNNING"}
        job.view = JobView(
            job_id=job.id,
            token=job.token,
            phase=job.phase,
            state=word.get(job.phase) or _WORDS.get(job.end_reason, "FAILED"),
            reason="Priority" if job.phase is JobPhase.PENDING else "None",
            partition=job.partition.name,
            nodes=(f"node{int(job.id) % 64:02d}",) if started else (),
            start_at=at(job.started_s) if job.started_s is not None else None,
            end_at=at((job.started_s or 0.0) + job.limit_s) if job.phase is JobPhase.HELD else None,
            end_reason=job.end_reason if job.phase is JobPhase.GONE else None,
        )
    return job.view
