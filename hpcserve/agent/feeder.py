"""Feeds the engine with batch requests: leases ahead, keeps a bounded window in flight, sheds.

Observe: each reading of the engine moves the cap (policy `local_limit`). Decide: how much to lease,
what to start, what to shed. Act: through the control API and the engine's HTTP front.

- The engine never starves: so much is leased ahead as it does in `prefetch_s`, and no more, so that
  the tail of a batch spreads over all instances.
- Shedding closes the connections of the newest requests, which aborts them inside the engine, and
  hands their lines back. An engine that takes a limit of its slots holds them back itself, at once
  and without loss; then only what is above the cap for `hold_s` is shed.
- Requests that were lost before run apart from the others and in small company (policy
  `isolation`).
- When the engine crashes, lines in flight are NOT handed back: the attempt counts, or a request
  that kills engines would do so for ever. Lines that had not been sent are handed back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from hpcserve.agent.answer import outcome, unanswered, understand
from hpcserve.agent.batch_slots import BatchSlots
from hpcserve.agent.engine_calls import EngineCalls
from hpcserve.agent.hand_in import HandIn
from hpcserve.agent.pause import Backoff
from hpcserve.agent.pressure import Pressure
from hpcserve.config.tree import Agent as AgentSettings
from hpcserve.domain.load import EngineLoad
from hpcserve.errors import BackendError, FencedError
from hpcserve.policy.isolation import company, suspicion
from hpcserve.policy.local_limit import LocalLimit
from hpcserve.ports.clock import Clock
from hpcserve.ports.control import Control, Grant, GrantedLine, Outcome


@dataclass(slots=True, eq=False)
class _Lease:
    """A lease that we hold."""

    id: int
    route: str
    #: lines that are neither finished nor handed back
    open: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """One line that is to be run."""

    lease: _Lease
    line: GrantedLine

    @property
    def suspicion(self) -> int:
        return suspicion(self.line.attempts)


class Feeder:
    """The batch side of one agent."""

    def __init__(
        self,
        *,
        control: Control,
        calls: EngineCalls,
        clock: Clock,
        jitter: Callable[[], float],
        settings: AgentSettings,
        limit: LocalLimit,
        slots: BatchSlots,
        health: asyncio.Event,
    ) -> None:
        """Take the first limit, where to tell it the engine, and the event of a healthy engine."""
        self._control = control
        self._calls = calls
        self._clock = clock
        self._jitter = jitter
        self._settings = settings
        self._health = health
        self._pressure = Pressure(limit)
        self._slots = slots
        #: since when more is in flight than the cap, and the highest cap since then
        self._above: tuple[float, int] | None = None
        self._hand_in = HandIn(control, clock, jitter, settings, self._lose)
        self._leases: dict[int, _Lease] = {}
        self._buffer: deque[_Work] = deque()
        #: in the order in which they started
        self._running: dict[_Work, asyncio.Task[None]] = {}
        self._is_open = False
        self._is_closed = False
        self._hungry = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None

    @property
    def in_flight(self) -> int:
        """Batch requests inside the engine."""
        return len(self._running)

    async def run(self) -> None:
        """Lease, run and hand in until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            self._tasks.create_task(self._hand_in.run())
            self._tasks.create_task(self._lease())

    def allow(self, *, is_open: bool) -> None:
        """Lease only while the control plane knows us as ready."""
        self._is_open = is_open
        self._appetite()

    def observe(self, load: EngineLoad) -> None:
        """Take a reading of the engine: move the cap, shed what is above it, start what fits."""
        cap = self._pressure.observe(
            load, in_flight=len(self._running), is_obeyed=self._slots.is_obeyed
        )
        self._slots.limit(cap)
        if len(self._running) > cap:
            newest = tuple(self._running)[self._allowed(cap) :]
            self._give_back(newest)
            keep = self._target()
            self._give_back(tuple(self._buffer)[keep:])
        else:
            self._above = None
        self._dispatch()

    def close(self) -> None:
        """Take no more work and hand back what has not been sent."""
        self._is_closed = True
        self._give_back(tuple(self._buffer))
        self._appetite()

    def hand_back(self) -> None:
        """Abort what is in flight and hand it back, at no cost."""
        self._give_back(tuple(self._running))

    def forsake(self) -> None:
        """Let go of what was in flight when the engine died; its attempts count."""
        self.close()
        for task in self._running.values():
            task.cancel()
        self._running.clear()

    async def flush(self) -> None:
        """Hand in everything that is finished or given back."""
        await self._hand_in.flush()

    # -- leasing

    async def _lease(self) -> None:
        backoff = Backoff(
            self._jitter, first_s=self._settings.retry_first_s, max_s=self._settings.retry_max_s
        )
        while True:
            await self._hungry.wait()
            limit = min(self._target() - len(self._buffer), self._settings.lease_max)
            try:
                grant = await self._control.lease(limit, self._holding())
            except (BackendError, FencedError):
                await self._clock.sleep(backoff.failed())
                continue
            backoff.succeeded()
            if grant is None:
                await self._clock.sleep(self._settings.lease_poll_s)
            else:
                self._accept(grant)
            self._appetite()

    def _holding(self) -> tuple[int, ...]:
        """Forget leases that nothing is open or owed of; return the others."""
        for lease in tuple(self._leases.values()):
            if not lease.open and not self._hand_in.owes(lease.id):
                del self._leases[lease.id]
        return tuple(self._leases)

    def _accept(self, grant: Grant) -> None:
        lease = _Lease(grant.lease_id, grant.route, {line.line_no for line in grant.lines})
        self._leases[lease.id] = lease
        # the least suspect first, so that company changes at most twice a lease
        lines = sorted(grant.lines, key=lambda line: suspicion(line.attempts))
        works = [_Work(lease, line) for line in lines]
        if self._is_closed:
            self._hand_in_undone(works)
            return
        self._buffer.extend(works)
        self._dispatch()

    def _target(self) -> int:
        """Return how many lines to have at hand beyond those in flight."""
        window = self._window()
        if window == 0:
            return 0
        rate = self._pressure.lines_per_s
        ahead = window if rate is None else max(1, round(rate * self._settings.prefetch_s))
        return max(0, window - len(self._running)) + ahead

    def _window(self) -> int:
        """Return how many lines may be in flight; fewer when they were lost before."""
        cap = self._pressure.limit.cap
        first = next(iter(self._running), self._buffer[0] if self._buffer else None)
        return cap if first is None else company(first.suspicion, cap)

    def _appetite(self) -> None:
        is_hungry = (
            self._is_open
            and not self._is_closed
            and len(self._buffer) * 2 < self._target()
            and self._hand_in.waiting < self._settings.unsettled_max
        )
        if is_hungry:
            self._hungry.set()
        else:
            self._hungry.clear()

    # -- running

    def _dispatch(self) -> None:
        while self._tasks is not None and self._buffer and self._fits(self._buffer[0]):
            work = self._buffer.popleft()
            self._running[work] = self._tasks.create_task(self._run(work))
        self._pressure.started(len(self._running))
        self._appetite()

    def _fits(self, work: _Work) -> bool:
        is_alike = all(w.suspicion == work.suspicion for w in islice(self._running, 1))
        return is_alike and len(self._running) < self._window()

    async def _run(self, work: _Work) -> None:
        done = await self._attempt(work)
        if self._running.pop(work, None) is None:
            # given back while its answer came in: another instance may have it by now
            return
        if done is None:
            self._hand_in_undone((work,))
        else:
            self._finish(work.lease, work.line.line_no)
            self._pressure.finished()
            self._hand_in.result(work.lease.id, done)
        self._dispatch()

    async def _attempt(self, work: _Work) -> Outcome | None:
        """Return the line's result, or None when it should be tried elsewhere.

        Whether a failure is the request's own is judged after the next reading of the engine: if it
        died, this never returns, and the attempt is lost with it.
        """
        backoff = Backoff(
            self._jitter, first_s=self._settings.line_retry_s, max_s=self._settings.retry_max_s
        )
        result: Outcome | None = None
        for _ in range(1 + self._settings.line_retries):
            try:
                reply = understand(await self._calls.post(work.lease.route, work.line.body))
            except BackendError as error:
                result = unanswered(
                    work.line,
                    lease_id=work.lease.id,
                    code="engine_gave_no_answer",
                    message=error.message,
                )
                if not error.retryable:
                    return result
            else:
                result = outcome(work.line, reply, lease_id=work.lease.id)
                if reply.is_success or reply.blames_request:
                    return result
                if reply.excuses_request:
                    result = None
            await self._clock.sleep(self._settings.probe_s + backoff.failed())
            await self._health.wait()
        return result

    # -- giving back

    def _allowed(self, cap: int) -> int:
        """Return how many may stay in flight: the cap, and what the engine may hold back."""
        if not self._slots.is_obeyed:
            return cap
        now_s = self._clock.monotonic_s()
        since_s, highest = self._above or (now_s, cap)
        highest = max(highest, cap)
        if now_s - since_s < self._settings.hold_s:
            self._above = since_s, highest
            return len(self._running)
        self._above = None
        return highest

    def _give_back(self, works: tuple[_Work, ...]) -> None:
        for work in works:
            task = self._running.pop(work, None)
            if task is not None:
                task.cancel()
        gone = set(works)
        if gone:
            self._buffer = deque(work for work in self._buffer if work not in gone)
            self._hand_in_undone(works)

    def _hand_in_undone(self, works: tuple[_Work, ...] | list[_Work]) -> None:
        by_lease: dict[_Lease, list[int]] = {}
        for work in works:
            by_lease.setdefault(work.lease, []).append(work.line.line_no)
        for lease, line_nos in by_lease.items():
            self._finish(lease, *line_nos)
            self._hand_in.undone(lease.id, line_nos)

    def _finish(self, lease: _Lease, *line_nos: int) -> None:
        lease.open.difference_update(line_nos)

    def _lose(self, lease_id: int) -> None:
        """Drop the work of a lease that is not ours any more."""
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            return
        for work in [work for work in self._running if work.lease is lease]:
            self._running.pop(work).cancel()
        self._buffer = deque(work for work in self._buffer if work.lease is not lease)
        self._dispatch()
