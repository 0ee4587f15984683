"""Start engines as child processes that end with this process, whatever ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from hpcserve.errors import BackendError
from hpcserve.ports.engine import Launch

_LEASH = Path(__file__).parent / "leash.py"


class EngineProcess:
    """A started program and its process group; the port Process."""

    def __init__(self, process: asyncio.subprocess.Process, leash: int) -> None:
        """Take the first process of the group and our end of its leash."""
        self._process = process
        self._leash = leash
        self._end = asyncio.create_task(self._wait())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for its end and return the exit code; safe to cancel and to call again."""
        return await asyncio.shield(self._end)

    def terminate(self) -> None:
        """Ask the first process to end; what is left of its group ends with it.

        Not the whole group: vLLM's workers obey SIGTERM at once, and with them die the streams that
        the first process wants to finish (seen on 0.32.0).
        """
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the whole group at once."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _wait(self) -> int:
        try:
            return await self._process.wait()
        finally:
            # Lets the watcher end what the first process left behind.
            os.close(self._leash)


class EngineProcesses:
    """The port Processes."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Take the environment of the job, which each launch adds to."""
        self._environment = environment

    async def start(self, launch: Launch, *, log_path: str) -> EngineProcess:
        """Start in a process group of its own, output and errors appended to *log_path*."""
        environment = {**self._environment, **launch.env}
        if shutil.which(launch.argv[0], path=environment.get("PATH", os.defpath)) is None:
            raise BackendError(
                f"{launch.argv[0]} cannot be started: there is no such program; is the engine's"
                " environment installed on this node?",
                retryable=False,
            )
        # The child alone inherits the reading end; with its end the watcher notices ours.
        theirs, ours = os.pipe()
        try:
            with _open_log(log_path) as log:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-S", str(_LEASH), str(theirs)),
                    *launch.argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=asyncio.subprocess.STDOUT,
                    env=environment,
                    pass_fds=(theirs,),
                    start_new_session=True,
                )
        except OSError as error:
            os.close(ours)
            raise BackendError(
                f"{launch.argv[0]} cannot be started with its log in {log_path}: {error.strerror}",
                retryable=False,
            ) from error
        finally:
            os.close(theirs)
        return EngineProcess(process, ours)


def _open_log(path: str) -> BinaryIO:
    return Path(path).open("ab")
