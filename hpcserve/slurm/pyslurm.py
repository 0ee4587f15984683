"""Slurm with pyslurm in place of `squeue`, where the installed one matches the site's release.

pyslurm answers the one question of every tick in about a millisecond, without a process. All else
stays with the commands, because that is less code and says more:

- submission: the batch script comes from submitit anyway, and pyslurm has no `--test-only`;
- cancelling: pyslurm's `Job.cancel` sends KILL, which leaves a job no time to hand its work back;
- partitions: its count of GPUs in use comes from TRES, which without slurmdbd know no GPUs;
- accounting: it cannot tell a site without slurmdbd from one whose slurmdbd is down.

pyslurm runs in a process of its own (`pyslurm_worker`), which is killed when it does not answer,
and ended after an answer that is an error: libslurm reads its configuration once, and would look
for slurmctld at its old address for ever.

Shown by hand with pyslurm 25.11.2 on Slurm 25.11.7: the whole cluster contract. The tests in this
tree use a stand-in, because no distribution brings a Slurm that pyslurm builds against.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from datetime import UTC, datetime
from typing import Any

from hpcserve.domain.job import JobPhase, JobView
from hpcserve.errors import BackendError
from hpcserve.slurm.commands import Commands, kill_group
from hpcserve.slurm.nodelist import expand
from hpcserve.slurm.squeue import by_token
from hpcserve.slurm.states import phase_of
from hpcserve.slurm.tag import Tag

MODULE = "pyslurm"
#: bytes of one answer: a few hundred for each job of this user
_ANSWER_LIMIT = 64 * 1024 * 1024


class PySlurm:
    """Reads our jobs through the process that holds pyslurm, which is started when needed."""

    name = "pyslurm"

    def __init__(self, *, commands: Commands, tag: Tag, module: str = MODULE) -> None:
        """Take the environment and the time limit of commands, and whose jobs count."""
        self._tag = tag
        self._env = {**commands.env, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._timeout_s = commands.timeout_s
        self._module = module
        self._process: Process | None = None
        self._one_at_a_time = asyncio.Lock()

    async def version(self) -> str:
        """Return the release of pyslurm.

        Raises:
            BackendError: it is not installed, or (retryable) finds no configuration now.

        """
        async with self._one_at_a_time:
            await self.close()
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await self._start()
            except TimeoutError as error:
                await self.close()
                raise BackendError(
                    f"pyslurm could not be loaded within {self._timeout_s:g} s", retryable=True
                ) from error

    async def jobs(self) -> dict[str, JobView]:
        """Return our jobs by token; see `JobsReader`."""
        async with self._one_at_a_time:
            try:
                async with asyncio.timeout(self._timeout_s):
                    if self._process is None:
                        await self._start()
                    answer = await self._ask()
            except (TimeoutError, ConnectionError) as error:
                await self.close()
                why = str(error) or f"the limit is {self._timeout_s:g} s"
                raise BackendError(
                    f"pyslurm gave no answer ({why}); nothing is concluded about any job",
                    retryable=True,
                ) from error
            except asyncio.CancelledError:
                # the answer to this question must not be taken for that to the next
                await self.close()
                raise
            if "error" in answer:
                await self.close()
                raise BackendError(
                    f"Slurm does not answer pyslurm ({answer['error']});"
                    " nothing is concluded about any job",
                    retryable=True,
                )
        views = (_view(row, self._tag.token(row["comment"])) for row in answer["jobs"])
        return by_token(view for view in views if view is not None)

    async def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            await kill_group(process)

    async def _start(self) -> str:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "hpcserve.slurm.pyslurm_worker",
            self._module,
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env=self._env,
            limit=_ANSWER_LIMIT,
            start_new_session=True,
        )
        try:
            hello = await self._read()
        except ConnectionError as error:
            await self.close()
            # where slurmctld hands the configuration out, this is how its outage looks
            raise BackendError(
                "pyslurm ended while it was loaded: it finds no configuration of Slurm, or"
                " slurmctld, which may hand it out, does not answer",
                retryable=True,
            ) from error
        if "error" in hello:
            await self.close()
            raise BackendError(
                f"pyslurm cannot be loaded ({hello['error']}); install the release that matches"
                " Slurm, or choose the back end cli",
                retryable=False,
            )
        return str(hello["version"])

    async def _ask(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(b"jobs\n")
        await self._process.stdin.drain()
        return await self._read()

    async def _read(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("the process that holds pyslurm has ended")
        message: dict[str, Any] = json.loads(line)
        return message


def mismatch(pyslurm_version: str, slurm_version: str) -> str | None:
    """Say why this pyslurm cannot be used with this Slurm; None when it can.

    pyslurm builds only against its own release, and only the first two numbers must agree.
    """
    ours, site = (_release(version) for version in (pyslurm_version, slurm_version))
    if ours == site:
        return None
    return (
        f"pyslurm {pyslurm_version} belongs to Slurm {ours[0]}.{ours[1]:02d} and this site runs"
        f" {slurm_version}; install the pyslurm of that release, or choose the back end cli"
    )


def _release(version: str) -> tuple[int, int]:
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


def _view(row: dict[str, Any], token: str | None) -> JobView | None:
    if token is None:
        return None
    phase, end_reason = phase_of(
        row["state"], reason=row["reason"], preempted=row["preempted"] is not None
    )
    return JobView(
        job_id=row["job_id"],
        token=token,
        phase=phase,
        state=row["state"],
        reason=row["reason"],
        partition=row["partition"],
        nodes=expand(row["nodes"]),
        start_at=_time(row["start"]),
        end_at=None if phase is JobPhase.PENDING else _time(row["end"]),
        end_reason=end_reason,
        exit_code=row["exit_code"] if phase is JobPhase.GONE else None,
    )


def _time(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
