"""Child processes: the engine is one, with processes of its own below it."""

from __future__ import annotations

from typing import Protocol

from hpcserve.ports.engine import Launch


class Process(Protocol):
    """A started process and everything that it started."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        ...

    async def wait(self) -> int:
        """Wait for its end and return the exit code; safe to cancel and to call again."""
        ...

    def terminate(self) -> None:
        """Ask it to end (SIGTERM to the first process); nothing happens when it is gone."""
        ...

    def kill(self) -> None:
        """End it at once (SIGKILL to its whole group); nothing happens when it is gone."""
        ...


class Processes(Protocol):
    """Starts processes that never outlive this one, even when it is killed."""

    async def start(self, launch: Launch, *, log_path: str) -> Process:
        """Start in a process group of its own, output and errors appended to *log_path*.

        Raises BackendError(retryable=False) when the program cannot be started.
        """
        ...
