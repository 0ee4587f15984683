"""An asyncio loop in virtual time: when nothing is ready, time jumps to the next timer.

The same program makes the same history each time. A loop that would wait for ever raises
DeadlockError, which names the tasks that wait. What would run in a thread runs in place.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

from typing_extensions import TypeVarTuple, Unpack, override

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class DeadlockError(RuntimeError):
    """Every task waits and no timer is set: a bug of the program that is simulated."""


class _JumpingSelector(selectors.SelectSelector):
    """Never waits; what it was asked to wait passes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.at_s = 0.0
        self.waiting: Callable[[], str] = str

    @override
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise DeadlockError(f"nothing will ever happen again; {self.waiting()}")
        self.at_s += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop; `time()` counts virtual seconds from 0."""

    def __init__(self) -> None:
        """Begin at 0 s."""
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self._jumping.waiting = self._waiting

    @override
    def time(self) -> float:
        return self._jumping.at_s

    @override
    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[Unpack[Ts]], T],
        *args: *Ts,
    ) -> asyncio.Future[T]:
        """Run *func* now: a thread would not know this time."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  # the caller's, whatever it is
            future.set_exception(error)
        return future

    def _waiting(self) -> str:
        names = sorted(task.get_name() for task in asyncio.all_tasks(self))
        return f"these wait: {', '.join(names)}"


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* to its end in virtual time.

    Raises:
        DeadlockError: it waits for something that cannot happen.

    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
