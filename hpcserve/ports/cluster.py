"""The scheduler: submit, cancel, and one question a tick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from hpcserve.domain.job import JobSpec, JobsView, JobView, Partition


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The scheduler refuses the job as it is; asking again with the same spec is of no use."""

    message: str


class Cluster(Protocol):
    """A Slurm cluster, or what stands in for one.

    Every method raises BackendError(retryable=True) when the scheduler does not answer; nothing
    may be concluded from that about any job.
    """

    @property
    def description(self) -> str:
        """Say in a few words what this is: `Slurm 22.05.8 (commands)`."""
        ...

    async def submit(self, spec: JobSpec) -> str | Refused:
        """Submit and return the job id, or why the scheduler refuses."""
        ...

    def script(self, spec: JobSpec) -> str:
        """Return the batch script that `submit` would hand over."""
        ...

    async def cancel(self, job_ids: Sequence[str]) -> None:
        """Cancel jobs with one call; jobs that are gone already are no error."""
        ...

    async def jobs(self) -> JobsView:
        """Return all our jobs with ONE question to the scheduler."""
        ...

    async def accounted(self, tokens: Mapping[str, str]) -> Mapping[str, JobView]:
        """Return what accounting knows of jobs that `jobs` no longer lists.

        Args:
            tokens: job id by token. Tokens that accounting does not know (any more, or yet, or
                because there is none) are missing in the answer.

        """
        ...

    async def partitions(self) -> tuple[Partition, ...]:
        """Return the partitions."""
        ...

    async def estimate_start(self, spec: JobSpec) -> datetime | None:
        """Return when the scheduler would start such a job (`sbatch --test-only`), if it says."""
        ...
