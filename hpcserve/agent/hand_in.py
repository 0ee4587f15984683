"""Hands results and undone requests back to the control plane, in groups, until it has them.

What cannot be handed in is kept and tried again; what it can grow to is bounded, since no more
work is leased while too much waits here. A lost lease drops what belongs to it: another instance
does that work, and only one of us may commit it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from hpcserve.agent.pause import Backoff
from hpcserve.config.tree import Agent as AgentSettings
from hpcserve.errors import BackendError, FencedError
from hpcserve.ports.clock import Clock
from hpcserve.ports.control import Control, Outcome


class HandIn:
    """Everything that this agent still owes the control plane."""

    def __init__(
        self,
        control: Control,
        clock: Clock,
        jitter: Callable[[], float],
        settings: AgentSettings,
        lost: Callable[[int], None],
    ) -> None:
        """Take what to call with the id of a lease that is not ours any more."""
        self._control = control
        self._clock = clock
        self._settings = settings
        self._lost = lost
        self._backoff = Backoff(jitter, first_s=settings.retry_first_s, max_s=settings.retry_max_s)
        self._results: dict[int, list[Outcome]] = {}
        self._undone: dict[int, list[int]] = {}
        self._waiting = 0
        self._some = asyncio.Event()
        self._enough = asyncio.Event()
        self._lock = asyncio.Lock()

    @property
    def waiting(self) -> int:
        """Results that are not durable yet."""
        return self._waiting

    def owes(self, lease_id: int) -> bool:
        """Whether something of this lease waits here."""
        return lease_id in self._results or lease_id in self._undone

    def result(self, lease_id: int, outcome: Outcome) -> None:
        """Take a finished request."""
        self._results.setdefault(lease_id, []).append(outcome)
        self._waiting += 1
        self._some.set()
        if self._waiting >= self._settings.settle_max:
            self._enough.set()

    def undone(self, lease_id: int, line_nos: Sequence[int]) -> None:
        """Take requests that somebody else shall do."""
        if line_nos:
            self._undone.setdefault(lease_id, []).extend(line_nos)
            self._some.set()

    async def run(self) -> None:
        """Hand in for ever: a group when it is large enough, or old enough."""
        while True:
            await self._some.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.settle_s):
                    await self._enough.wait()
            if not await self._hand_in():
                await self._clock.sleep(self._backoff.failed())

    async def flush(self) -> None:
        """Hand everything in; the caller says how long that may take."""
        while self._results or self._undone:
            if not await self._hand_in():
                await self._clock.sleep(self._backoff.failed())

    async def _hand_in(self) -> bool:
        """Hand in what there is; False when something is left because of a failure."""
        async with self._lock:
            self._some.clear()
            self._enough.clear()
            try:
                for lease_id in tuple(self._undone):
                    await self._give_back(lease_id)
                for lease_id in tuple(self._results):
                    await self._settle(lease_id)
            except BackendError:
                self._some.set()
                return False
            self._backoff.succeeded()
            return True

    async def _give_back(self, lease_id: int) -> None:
        line_nos = self._undone[lease_id]
        count = len(line_nos)
        try:
            await self._control.release(lease_id, tuple(line_nos))
        except FencedError:
            self._drop(lease_id)
            return
        del line_nos[:count]
        if not line_nos:
            del self._undone[lease_id]

    async def _settle(self, lease_id: int) -> None:
        outcomes = self._results[lease_id]
        for group in _groups(tuple(outcomes), self._settings):
            try:
                taken = await self._control.settle(lease_id, group)
            except FencedError:
                self._drop(lease_id)
                return
            del outcomes[: len(group)]
            self._waiting -= len(group)
            if not taken:
                # none was wanted: the batch was cancelled, or closed by its window
                self._drop(lease_id)
                return
        if not outcomes:
            self._results.pop(lease_id, None)

    def _drop(self, lease_id: int) -> None:
        self._waiting -= len(self._results.pop(lease_id, ()))
        self._undone.pop(lease_id, None)
        self._lost(lease_id)


def _groups(outcomes: Sequence[Outcome], settings: AgentSettings) -> Iterator[Sequence[Outcome]]:
    """Yield groups that fit one call; half the limit leaves room for particulars."""
    group: list[Outcome] = []
    size = 0
    for outcome in outcomes:
        too_many = len(group) >= settings.settle_max
        if group and (too_many or size + len(outcome.line) > settings.call_max_bytes // 2):
            yield group
            group, size = [], 0
        group.append(outcome)
        size += len(outcome.line)
    if group:
        yield group
