"""Running the scheduler's commands: never blocks the loop, always bounded, never with secrets.

A command that does not answer in time is killed with everything that it started. Its environment
is what was handed in, less our own settings and less Slurm variables that would change what
commands print or ask for: hpcserve itself may run inside a job, and `SBATCH_*` would win over the
batch script.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping
from dataclasses import dataclass

from hpcserve.errors import BackendError

#: of the environment handed in, these do not reach the commands and the jobs
_DROPPED = (
    "HPCSERVE_",
    "SLURM_",
    "SBATCH_",
    "SQUEUE_",
    "SINFO_",
    "SACCT_",
    "SCANCEL_",
    "SCONTROL_",
)
_KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})

#: what clients say when the controller or the authentication is away, 22.05 to 26.05
_UNREACHABLE = (
    "unable to contact slurm controller",
    "unable to contact slurmctld",
    "slurm controller not responding",
    "slurm backup controller in standby",
    "socket timed out",
    "connection refused",
    "connection timed out",
    "connect failure",
    "zero bytes were transmitted",
    "transport endpoint is not connected",
    "temporarily unable to",
    "munge encode failed",
    "protocol authentication error",
    "could not establish a configuration source",
    "failed to open persistent connection",
    "sending persistinit msg",
    "database connection reference is wrong",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command printed and how it ended."""

    command: str
    code: int
    out: str
    err: str

    @property
    def last_words(self) -> str:
        """The last line of stderr, for people."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code} without a word"

    @property
    def is_unreachable(self) -> bool:
        """Whether it failed because Slurm is away, not because of what it was asked."""
        text = self.err.lower()
        return self.code != 0 and any(phrase in text for phrase in _UNREACHABLE)

    def checked(self) -> Answer:
        """Return self.

        Raises:
            BackendError: the command failed; retryable when Slurm is away.

        """
        if self.code == 0:
            return self
        if self.is_unreachable:
            raise BackendError(
                f"Slurm does not answer {self.command} ({self.last_words});"
                " nothing is concluded about any job",
                retryable=True,
            )
        raise BackendError(f"{self.command} failed: {self.last_words}", retryable=False)


class Commands:
    """Runs commands in one environment under one time limit."""

    def __init__(self, *, env: Mapping[str, str], timeout_s: float) -> None:
        """Take the environment (PATH, SLURM_CONF) and the limit of each command."""
        self.env = {
            name: value
            for name, value in env.items()
            if name in _KEPT or not name.startswith(_DROPPED)
        }
        self.timeout_s = timeout_s
        self._clean_output = {"TZ": "UTC", "SLURM_TIME_FORMAT": "standard", "LC_ALL": "C"}

    async def ask(self, *argv: str, stdin: str = "") -> Answer:
        """Run a question: times come in UTC, words in English. See `run` for errors."""
        return await self.run(*argv, stdin=stdin, extra=self._clean_output)

    async def run(
        self, *argv: str, stdin: str = "", extra: Mapping[str, str] | None = None
    ) -> Answer:
        """Run one command to its end.

        Raises:
            BackendError: it does not exist, or (retryable) did not answer in time.

        """
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                # a pipe only when there is something to say: the command may end before it is said
                stdin=PIPE if stdin else DEVNULL,
                stdout=PIPE,
                stderr=PIPE,
                env={**self.env, **(extra or {})},
                start_new_session=True,
            )
        except OSError as error:
            raise BackendError(
                f"{argv[0]} cannot be started ({error.strerror}); is it on the PATH of hpcserve?",
                retryable=False,
            ) from error
        try:
            async with asyncio.timeout(self.timeout_s):
                out, err = await process.communicate(stdin.encode() or None)
        except TimeoutError as error:
            raise BackendError(
                f"{argv[0]} gave no answer within {self.timeout_s:g} s;"
                " nothing is concluded about any job",
                retryable=True,
            ) from error
        finally:
            await kill_group(process)
        assert process.returncode is not None
        return Answer(
            command=argv[0],
            code=process.returncode,
            out=out.decode(errors="replace"),
            err=err.decode(errors="replace"),
        )


async def kill_group(process: asyncio.subprocess.Process) -> None:
    """Kill a process that was given up, with everything that it started, and collect it."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
