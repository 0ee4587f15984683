"""A Slurm cluster behind the port, the same for 22.05, 24.11 and 26.05.

Everything goes through Slurm's commands; only the question of every tick, which jobs there are, has
two readers: `squeue` (the default) and `pyslurm`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from hpcserve.domain.job import JobSpec, JobsView, JobView, Partition
from hpcserve.errors import BackendError
from hpcserve.ports.clock import Clock
from hpcserve.ports.cluster import Refused
from hpcserve.slurm import partitions
from hpcserve.slurm.accounting import Accounting
from hpcserve.slurm.commands import Answer, Commands
from hpcserve.slurm.submission import Submission
from hpcserve.slurm.times import parse_time

_START = re.compile(r"to start at (\S+)")
_NOISE = re.compile(r"^sbatch: (error: )?(Batch job submission failed: )?")


class JobsReader(Protocol):
    """How our jobs are read: with one question to slurmctld."""

    @property
    def name(self) -> str:
        """Say how in a word."""
        ...

    async def jobs(self) -> dict[str, JobView]:
        """Return all our jobs by token.

        Raises:
            BackendError: Slurm does not answer (retryable), or says what we cannot read.

        """
        ...


class SlurmCluster:
    """Submits, cancels and asks; decides nothing."""

    def __init__(
        self,
        *,
        reader: JobsReader,
        commands: Commands,
        submission: Submission,
        clock: Clock,
        version: str,
    ) -> None:
        """Take how to read jobs, to run commands and to write jobs, and Slurm's release."""
        self._reader = reader
        self._commands = commands
        self._submission = submission
        self._clock = clock
        self._version = version
        self._accounting = Accounting(commands=commands, tag=submission.tag, clock=clock)

    @property
    def description(self) -> str:
        """Say in a few words what this is."""
        return f"Slurm {self._version} ({self._reader.name})"

    async def submit(self, spec: JobSpec) -> str | Refused:
        """Submit with `sbatch`; see the port.

        When the answer is lost the job may exist all the same: `jobs` shows it by its token.
        """
        path = await asyncio.to_thread(self._submission.write, spec, self.script(spec))
        answer = await self._commands.run("sbatch", "--parsable", str(path))
        if answer.code == 0:
            return _job_id(answer)
        if answer.is_unreachable:
            answer.checked()
        return Refused(message=_why(answer))

    def script(self, spec: JobSpec) -> str:
        """Return the batch script that `submit` hands over."""
        return self._submission.slurm_script(spec)

    async def cancel(self, job_ids: Sequence[str]) -> None:
        """Cancel with one `scancel`; jobs that Slurm has forgotten are no error."""
        if job_ids:
            answer = await self._commands.ask("scancel", *job_ids)
            if answer.code != 0 and "invalid job id" not in answer.err.lower():
                answer.checked()

    async def jobs(self) -> JobsView:
        """Return all our jobs with one question."""
        asked_at = self._clock.now()
        return JobsView(asked_at=asked_at, jobs=await self._reader.jobs())

    async def accounted(self, tokens: Mapping[str, str]) -> Mapping[str, JobView]:
        """Return what `sacct` knows; nothing where there is no accounting."""
        return await self._accounting.jobs(tokens)

    async def partitions(self) -> tuple[Partition, ...]:
        """Return the partitions with their GPUs."""
        rules, nodes = await asyncio.gather(
            self._commands.ask(*partitions.PARTITIONS_ARGV),
            self._commands.ask(*partitions.NODES_ARGV),
        )
        return partitions.parse_partitions(
            rules.checked().out, partitions.parse_nodes(nodes.checked().out)
        )

    async def estimate_start(self, spec: JobSpec) -> datetime | None:
        """Ask `sbatch --test-only`; None when Slurm would refuse.

        The estimate knows nothing of QOS limits, and the question uses up a job id.
        """
        answer = await self._commands.ask("sbatch", "--test-only", stdin=self.script(spec))
        if answer.is_unreachable:
            answer.checked()
        match = _START.search(answer.err)
        return parse_time(match[1]) if match else None


def _job_id(answer: Answer) -> str:
    # `--parsable` adds `;cluster` on federations
    job_id = answer.out.strip().partition(";")[0]
    if not job_id.isdigit():
        raise BackendError(
            f"sbatch printed {answer.out.strip()!r} instead of a job id; the job may exist",
            retryable=True,
        )
    return job_id


def _why(answer: Answer) -> str:
    """Return sbatch's reasons in one line, without its repetitions."""
    lines = [_NOISE.sub("", line.strip()) for line in answer.err.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines)) or answer.last_words
