"""No Slurm: jobs are processes of this machine, with the time limit and the signals of a real job.

Each job has a supervisor (`supervisor`) that outlives the controller and keeps a record on disk; a
restarted controller finds its jobs there by token. A record says that a job runs only as long as
that very process does: pid, start tick and boot must match. There is no queue: what does not fit
now is refused or, where GPUs are only busy, to be tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from hpcserve.domain.job import JobPhase, JobSpec, JobsView, JobView, Partition
from hpcserve.errors import BackendError
from hpcserve.ports.clock import Clock
from hpcserve.ports.cluster import Refused
from hpcserve.slurm.commands import Commands
from hpcserve.slurm.record import LocalRecord, load
from hpcserve.slurm.states import phase_of
from hpcserve.slurm.submission import Submission, notice_s

NAME = "local"
#: seconds between TERM and KILL, as Slurm's default KillWait
KILL_WAIT_S = 30.0
#: ended jobs are listed so long, s; as Slurm's default MinJobAge
LISTED_S = 300.0


class LocalCluster:
    """This machine as a cluster of one node."""

    def __init__(
        self,
        *,
        commands: Commands,
        submission: Submission,
        clock: Clock,
        supervisor_python: str,
        gpus: int,
        kill_wait_s: float = KILL_WAIT_S,
    ) -> None:
        """Take how to run commands and write jobs, the interpreter of hpcserve, and the GPUs."""
        self._kill_wait_s = kill_wait_s
        self._commands = commands
        self._submission = submission
        self._clock = clock
        self._supervisor = (supervisor_python, "-m", "hpcserve.slurm.supervisor")
        self._gpus = gpus
        self._submitting = asyncio.Lock()
        #: folders of jobs that ended long ago; they are not read again
        self._past: set[str] = set()

    @property
    def description(self) -> str:
        """Say in a few words what this is."""
        return "processes on this machine (no Slurm)"

    async def submit(self, spec: JobSpec) -> str | Refused:
        """Start the job at once; see the port."""
        if spec.nodes > 1:
            return Refused(
                message=f"{spec.name} asks for {spec.nodes} nodes; without Slurm there is 1"
            )
        if spec.gpus_per_node > self._gpus:
            return Refused(
                message=f"{spec.name} asks for {spec.gpus_per_node} GPUs;"
                f" this machine has {self._gpus}"
            )
        async with self._submitting:
            return await self._start(spec)

    def script(self, spec: JobSpec) -> str:
        """Return the script that `submit` runs."""
        return self._submission.local_script(spec)

    async def cancel(self, job_ids: Sequence[str]) -> None:
        """Send TERM to the supervisors, which end their jobs; KILL follows from them."""
        for _, record in await self._records():
            if record.job_id in job_ids and record.is_alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(record.process.pid, signal.SIGTERM)

    async def jobs(self) -> JobsView:
        """Return all our jobs from their records."""
        now = self._clock.now()
        listed_from = now - timedelta(seconds=LISTED_S)
        jobs: dict[str, JobView] = {}
        for folder, record in await self._records():
            view = self._view(record)
            if view is None:
                continue
            if view.phase is JobPhase.GONE and record.ends_at < listed_from:
                self._past.add(folder.name)
            else:
                jobs[view.token] = view
        return JobsView(asked_at=now, jobs=jobs)

    async def accounted(self, tokens: Mapping[str, str]) -> Mapping[str, JobView]:
        """Return what the records of these jobs say, however old they are."""
        found: dict[str, JobView] = {}
        for token in tokens:
            record = await asyncio.to_thread(load, self._submission.folder(token))
            view = self._view(record) if record else None
            if view is not None:
                found[token] = view
        return found

    async def partitions(self) -> tuple[Partition, ...]:
        """Return this machine as the one partition."""
        running = [r for _, r in await self._records() if r.is_alive]
        return (
            Partition(
                name=NAME,
                is_default=True,
                is_up=True,
                max_time_s=None,
                priority_tier=1,
                preempt_mode="off",
                grace_s=None,
                nodes_total=1,
                nodes_idle=0 if running else 1,
                gpus_total=self._gpus,
                gpus_idle=self._gpus - sum(len(record.gpus) for record in running),
            ),
        )

    async def estimate_start(self, spec: JobSpec) -> datetime | None:
        """Return now when its GPUs are free, else None: nobody knows when they will be."""
        (partition,) = await self.partitions()
        fits = spec.nodes == 1 and spec.gpus_per_node <= partition.gpus_idle
        return self._clock.now() if fits else None

    async def _start(self, spec: JobSpec) -> str:
        records = await self._records()
        taken = {gpu for _, record in records if record.is_alive for gpu in record.gpus}
        free = [gpu for gpu in range(self._gpus) if gpu not in taken][: spec.gpus_per_node]
        if len(free) < spec.gpus_per_node:
            raise BackendError(
                f"{spec.name} asks for {spec.gpus_per_node} GPUs and {len(free)} of {self._gpus}"
                " are free; it will be tried again",
                retryable=True,
            )
        path = await asyncio.to_thread(self._submission.write, spec, self.script(spec))
        answer = await self._commands.run(
            *self._supervisor,
            str(path.parent),
            self._submission.tag.comment(spec.token),
            str(spec.time_limit_s),
            str(notice_s(spec)),
            str(self._kill_wait_s),
            str(self._submission.log(spec)),
            ",".join(map(str, free)),
            extra={"PYTHONPATH": self._submission.python_path},
        )
        record = await asyncio.to_thread(load, path.parent)
        if answer.code != 0 or record is None:
            raise BackendError(
                f"the process of {spec.name} cannot be started: {answer.last_words};"
                f" see {self._submission.log(spec)}",
                retryable=True,
            )
        return record.job_id

    async def _records(self) -> list[tuple[Path, LocalRecord]]:
        """Read the records of jobs that run or ended lately, off the loop."""
        try:
            return await asyncio.to_thread(self._read)
        except OSError as error:
            raise BackendError(
                f"the records of local jobs in {self._submission.jobs_dir} cannot be read"
                f" ({error.strerror}); nothing is concluded about any job",
                retryable=True,
            ) from error

    def _read(self) -> list[tuple[Path, LocalRecord]]:
        try:
            folders = sorted(self._submission.jobs_dir.iterdir())
        except FileNotFoundError:
            return []
        known = ((folder, load(folder)) for folder in folders if folder.name not in self._past)
        return [(folder, record) for folder, record in known if record is not None]

    def _view(self, record: LocalRecord) -> JobView | None:
        token = self._submission.tag.token(record.comment)
        if token is None:
            return None
        lost = record.state == "RUNNING" and not record.process.is_alive
        # its supervisor is gone without a word: the machine was restarted, or someone killed it
        state = "NODE_FAIL" if lost else record.state
        phase, end_reason = phase_of(state)
        return JobView(
            job_id=record.job_id,
            token=token,
            phase=phase,
            state=state,
            reason="its supervisor is gone" if lost else record.reason,
            partition=NAME,
            nodes=("localhost",),
            start_at=record.started_at,
            end_at=record.ends_at,
            end_reason=end_reason,
            exit_code=record.exit_code,
        )
