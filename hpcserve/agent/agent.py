"""The life of an agent: watch the engine, talk to the control plane, feed it, end well.

Everything that can end it (signal, order, fault, silence) becomes a Departure, and one path leads
out: announce it, hand batch work back, let interactive requests finish while there is time, end the
engine, say the last word. The engine never outlives the agent. While no gateway answers the engine
goes on serving: interactive streams do not pass through here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

from hpcserve.agent import departure
from hpcserve.agent.allocation import SIGNALS, Allocation
from hpcserve.agent.departure import Departure
from hpcserve.agent.feeder import Feeder
from hpcserve.agent.pause import Backoff
from hpcserve.agent.supervisor import Supervisor
from hpcserve.config.tree import Agent as AgentSettings
from hpcserve.errors import BackendError
from hpcserve.ports.clock import Clock
from hpcserve.ports.control import Control, Heartbeat, Order, Registration
from hpcserve.ports.gpus import Gpus

log = logging.getLogger(__name__)

#: readings without a running request after which the engine counts as empty: a gateway may take
#: until the second one to see that we drain
_EMPTY_READINGS = 2


class Agent:
    """One agent."""

    def __init__(
        self,
        *,
        registration: Registration,
        allocation: Allocation,
        control: Control,
        supervisor: Supervisor,
        feeder: Feeder,
        gpus: Gpus,
        clock: Clock,
        jitter: Callable[[], float],
        settings: AgentSettings,
        news: asyncio.Event,
    ) -> None:
        """Take the parts; *news* is set when there is something to say before the next beat."""
        self._registration = registration
        self._allocation = allocation
        self._control = control
        self._supervisor = supervisor
        self._feeder = feeder
        self._gpus = gpus
        self._clock = clock
        self._jitter = jitter
        self._settings = settings
        self._news = news
        self._departure: Departure | None = None
        self._departed = asyncio.Event()

    async def run(self) -> int:
        """Live until something ends us; return the exit code, 0 unless something is wrong."""
        loop = asyncio.get_running_loop()
        for signum in SIGNALS:
            # in place of submitit's own, which ignores SIGTERM and would requeue on the others
            loop.add_signal_handler(signum, self._on_signal, signum)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(part) for part in (self._watch(), self._talk(), self._feed())
                ]
                await self._departed.wait()
                await self._leave()
                for task in tasks:
                    task.cancel()
        finally:
            self._supervisor.kill()
            for signum in SIGNALS:
                loop.remove_signal_handler(signum)
        return 1 if self._leaving.ending.reason.is_fault else 0

    # -- what can end us

    def _on_signal(self, signum: int) -> None:
        self._depart(
            departure.on_signal(
                signum,
                allocation=self._allocation,
                current=self._departure,
                settings=self._settings,
                now=self._clock.now(),
                now_s=self._clock.monotonic_s(),
            )
        )

    def _obey(self, order: Order) -> None:
        now_s = self._clock.monotonic_s()
        match order:
            case Order.CONTINUE:
                pass
            case Order.DRAIN:
                if self._departure is None:
                    self._depart(departure.on_drain_order(self._settings, now_s))
            case Order.EXIT:
                self._depart(departure.on_exit_order(now_s))

    def _depart(self, new: Departure) -> None:
        log.warning("departing: %s %s", new.ending.reason, new.ending.message)
        self._departure = self._departure.and_then(new) if self._departure else new
        self._departed.set()

    # -- three things at a time

    async def _watch(self) -> None:
        ending = await self._supervisor.watch()
        now_s = self._clock.monotonic_s()
        if self._departure is None:
            self._feeder.forsake()
            self._depart(departure.on_engine_end(ending, now_s))
        else:
            # Slurm's SIGTERM goes to every process of the job: no fault of the engine
            self._depart(replace(self._departure, until_s=now_s))

    async def _feed(self) -> None:
        await self._feeder.run()

    async def _talk(self) -> None:
        """Register, then beat; sooner when there is news; give up after a long silence."""
        backoff = Backoff(
            self._jitter, first_s=self._settings.retry_first_s, max_s=self._settings.heartbeat_s
        )
        heard_s = self._clock.monotonic_s()
        is_registered = False
        while True:
            self._news.clear()
            heartbeat = self._heartbeat()
            try:
                if is_registered:
                    order = await self._control.beat(heartbeat)
                else:
                    order = await self._control.register(self._registration)
            except BackendError as error:
                now_s = self._clock.monotonic_s()
                log.warning("out of reach for %.0f s: %s", now_s - heard_s, error.message)
                if now_s - heard_s > self._settings.orphan_s:
                    self._depart(departure.on_orphaned(now_s - heard_s, now_s))
                await self._clock.sleep(backoff.failed())
                continue
            backoff.succeeded()
            heard_s = self._clock.monotonic_s()
            self._obey(order)
            if not is_registered:
                is_registered = True
                continue
            self._feeder.allow(is_open=heartbeat.healthy and order is Order.CONTINUE)
            await _within(self._settings.heartbeat_s, self._news.wait())

    def _heartbeat(self) -> Heartbeat:
        is_leaving = self._departure is not None
        return Heartbeat(
            healthy=self._supervisor.is_healthy,
            load=self._supervisor.load,
            gpus=self._gpus.read(),
            batch_running=self._feeder.in_flight,
            draining=is_leaving,
            stage="draining" if is_leaving else self._supervisor.stage,
        )

    # -- the way out

    @property
    def _leaving(self) -> Departure:
        assert self._departure is not None, "only what ends us leads here"
        return self._departure

    def _is_unheard(self) -> bool:
        return self._leaving.is_silent

    async def _leave(self) -> None:
        self._feeder.close()
        if self._is_unheard():
            return
        if self._supervisor.is_healthy:
            announcing = asyncio.ensure_future(self._announce())
            await self._finish_requests()
            announcing.cancel()
        self._feeder.hand_back()
        await _within(self._settings.last_word_s, self._feeder.flush())
        if self._is_unheard():
            return
        await self._supervisor.stop()
        await _within(self._settings.last_word_s, self._say_ended())

    async def _announce(self) -> None:
        backoff = self._retries()
        while True:
            try:
                self._obey(await self._control.draining(self._leaving.ending))
            except BackendError:
                await self._clock.sleep(backoff.failed())
            else:
                return

    async def _finish_requests(self) -> None:
        """Wait until the engine is empty, or the time is up; both can change while we wait."""
        empty, seen = 0, self._supervisor.load
        while (left_s := self._left_s()) > 0 and empty < _EMPTY_READINGS:
            if not self._leaving.finishes_batch:
                self._feeder.hand_back()
            self._departed.clear()
            await _within(min(left_s, self._settings.probe_s), self._departed.wait())
            load = self._supervisor.load
            if load is not None and load is not seen:
                is_empty = not (load.running or load.waiting or self._feeder.in_flight)
                empty, seen = (empty + 1 if is_empty else 0), load

    def _left_s(self) -> float:
        return self._leaving.until_s - self._clock.monotonic_s()

    async def _say_ended(self) -> None:
        backoff = self._retries()
        while True:
            try:
                await self._control.ended(self._leaving.ending)
            except BackendError:
                await self._clock.sleep(backoff.failed())
            else:
                return

    def _retries(self) -> Backoff:
        return Backoff(
            self._jitter, first_s=self._settings.retry_first_s, max_s=self._settings.retry_max_s
        )


async def _within(seconds: float, waiting: Awaitable[object]) -> None:
    """Wait for *waiting*, but no longer than that."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await waiting
