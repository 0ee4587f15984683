"""A scheduler and a clock that do what a test says, for the controller in virtual time."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from hpcserve.domain.job import EndReason, JobPhase, JobSpec, JobsView, JobView, Partition
from hpcserve.errors import BackendError
from hpcserve.ports.cluster import Refused
from tests.builders import NOW


class Killed(BaseException):
    """The process dies here: nothing after this point happens."""


@dataclass
class Clock:
    """Time that passes when somebody sleeps."""

    at: datetime = NOW

    def now(self) -> datetime:
        return self.at

    def monotonic_s(self) -> float:
        return (self.at - NOW).total_seconds()

    async def sleep(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@dataclass
class Ids:
    """Ids in order."""

    numbers: itertools.count = field(default_factory=lambda: itertools.count(1))

    def new(self, prefix: str) -> str:
        return f"{prefix}-{next(self.numbers)}"

    def secret(self) -> str:
        return f"secret-{next(self.numbers)}"


@dataclass
class Cluster:
    """Jobs in a dictionary; the test moves them on."""

    clock: Clock
    jobs_by_id: dict[str, JobView] = field(default_factory=dict)
    questions: int = 0
    down: bool = False
    refusal: str | None = None
    #: "before" or "after": kill the caller around the next submission
    kill: str | None = None

    description: str = "a scripted scheduler"

    def script(self, spec: JobSpec) -> str:
        return spec.name

    async def submit(self, spec: JobSpec) -> str | Refused:
        self._answer()
        if self.refusal:
            return Refused(message=self.refusal)
        if self.kill == "before":
            raise Killed
        job_id = str(len(self.jobs_by_id) + 1)
        self.jobs_by_id[job_id] = JobView(
            job_id=job_id,
            token=spec.token,
            phase=JobPhase.PENDING,
            state="PENDING",
            reason="Priority",
            partition=spec.partition or "gpu",
        )
        if self.kill == "after":
            raise Killed
        return job_id

    async def cancel(self, job_ids: Sequence[str]) -> None:
        self._answer()
        for job_id in job_ids:
            self.move(job_id, JobPhase.GONE, EndReason.CANCELLED_OUTSIDE, state="CANCELLED")

    async def jobs(self) -> JobsView:
        self.questions += 1
        self._answer()
        return JobsView(
            asked_at=self.clock.now(), jobs={job.token: job for job in self.jobs_by_id.values()}
        )

    async def accounted(self, tokens: Mapping[str, str]) -> Mapping[str, JobView]:
        return {}

    async def partitions(self) -> tuple[Partition, ...]:
        return ()

    async def estimate_start(self, spec: JobSpec) -> datetime | None:
        return None

    def move(
        self,
        job_id: str,
        phase: JobPhase,
        end_reason: EndReason | None = None,
        state: str = "RUNNING",
    ) -> None:
        """Let a job start or end."""
        self.jobs_by_id[job_id] = replace(
            self.jobs_by_id[job_id], phase=phase, state=state, end_reason=end_reason
        )

    @property
    def held(self) -> list[str]:
        """Jobs that hold or may yet hold GPUs."""
        return [job.job_id for job in self.jobs_by_id.values() if job.phase is not JobPhase.GONE]

    def _answer(self) -> None:
        if self.down:
            raise BackendError("squeue: Unable to contact slurm controller", retryable=True)
