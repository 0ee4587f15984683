"""The batch side of an agent, with an engine and a control plane that the test speaks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

from hpcserve.agent.answer import Answer
from hpcserve.agent.feeder import Feeder
from hpcserve.config.tree import Agent as AgentSettings
from hpcserve.errors import BackendError, FencedError
from hpcserve.policy.local_limit import LocalLimit
from hpcserve.ports.control import Grant, GrantedLine, Outcome
from tests.builders import NOW
from tests.unit.agent.loads import a_load


class InstantClock:
    at_s = 0.0

    def now(self):
        return NOW

    def monotonic_s(self) -> float:
        return self.at_s

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


@dataclass
class Engine:
    """Answers when the test says so."""

    open: dict[bytes, asyncio.Future[Answer]] = field(default_factory=dict)
    aborted: list[bytes] = field(default_factory=list)

    async def post(self, route: str, body: bytes) -> Answer:
        future = self.open[body] = asyncio.get_running_loop().create_future()
        try:
            return await future
        except asyncio.CancelledError:
            self.aborted.append(body)
            raise
        finally:
            del self.open[body]

    def answer(self, *bodies: bytes) -> None:
        for body in bodies:
            self.open[body].set_result(Answer(status=200, body=b"{}"))


@dataclass
class ControlPlane:
    """Hands the test's leases out."""

    grants: list[Grant]
    asked: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    settled: list[int] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    is_away: bool = False
    is_fenced: bool = False

    async def lease(self, limit: int, holding: Sequence[int]) -> Grant | None:
        if self.is_away:
            raise BackendError("away", retryable=True)
        self.asked.append((limit, tuple(holding)))
        return self.grants.pop(0) if self.grants else None

    async def settle(self, lease_id: int, outcomes: Sequence[Outcome]) -> frozenset[int]:
        if self.is_away:
            raise BackendError("away", retryable=True)
        if self.is_fenced:
            raise FencedError("lost")
        numbers = [outcome.line_no for outcome in outcomes]
        self.settled += numbers
        return frozenset(numbers)

    async def release(self, lease_id: int, line_nos: Sequence[int] | None) -> None:
        self.released += line_nos or ()


def a_grant(lease_id: int, *attempts: int) -> Grant:
    """Return a lease whose lines are numbered from 100 times its id."""
    first = 100 * lease_id
    lines = [
        GrantedLine(line_no=first + n, custom_id="c", attempts=k, body=b"%d" % (first + n))
        for n, k in enumerate(attempts)
    ]
    return Grant(
        lease_id=lease_id,
        batch_id="b",
        route="/v1/x",
        expires_at=NOW + timedelta(seconds=60),
        lines=tuple(lines),
    )


@dataclass
class ToldSlots:
    """An engine that holds batch back by itself, or does not."""

    is_obeyed: bool
    limits: list[int] = field(default_factory=list)

    def limit(self, slots: int) -> None:
        self.limits.append(slots)


@asynccontextmanager
async def feeding(
    control: ControlPlane,
    engine: Engine,
    slots: int,
    *,
    told: ToldSlots | None = None,
    clock: InstantClock | None = None,
) -> AsyncIterator[Feeder]:
    health = asyncio.Event()
    health.set()
    feeder = Feeder(
        control=control,  # type: ignore[arg-type]  # the calls that a feeder makes
        calls=engine,  # type: ignore[arg-type]  # the same
        clock=clock or InstantClock(),
        jitter=lambda: 0.0,
        settings=AgentSettings(settle_s=0.0, hold_s=10.0),
        limit=LocalLimit(cap=slots, ceiling=slots, itl_slo_s=0.1, memory_s=60),
        slots=told or ToldSlots(is_obeyed=False),  # type: ignore[arg-type]  # no file here
        health=health,
    )
    task = asyncio.create_task(feeder.run())
    feeder.allow(is_open=True)
    try:
        await turns()
        yield feeder
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def turns() -> None:
    """Let everything that can happen without the test happen."""
    for _ in range(60):
        await asyncio.sleep(0)


def numbers(engine: Engine) -> list[int]:
    return sorted(int(body) for body in engine.open)


async def test_the_window_is_kept_full_and_no_more() -> None:
    control, engine = ControlPlane([a_grant(1, *[0] * 6)]), Engine()
    async with feeding(control, engine, 4) as feeder:
        assert numbers(engine) == [100, 101, 102, 103]
        engine.answer(b"101", b"102")
        await turns()
        assert numbers(engine) == [100, 103, 104, 105]
        assert feeder.in_flight == 4
    assert control.settled == [101, 102]


async def test_lines_that_were_lost_before_run_apart_and_in_small_company() -> None:
    control, engine = ControlPlane([a_grant(1, 2, 1, 0, 1, 0, 2, 1)]), Engine()
    async with feeding(control, engine, 4):
        order = []
        while engine.open:
            order.append(numbers(engine))
            engine.answer(*tuple(engine.open))
            await turns()
    assert order == [[102, 104], [101, 103], [106], [100], [105]]


async def test_after_a_crash_only_lines_that_were_never_sent_go_back() -> None:
    control, engine = ControlPlane([a_grant(1, *[0] * 6)]), Engine()
    async with feeding(control, engine, 4) as feeder:
        feeder.forsake()
        await feeder.flush()
    assert control.released == [104, 105]


async def test_what_is_in_flight_goes_back_when_handed_back() -> None:
    control, engine = ControlPlane([a_grant(1, *[0] * 6)]), Engine()
    async with feeding(control, engine, 4) as feeder:
        feeder.close()
        feeder.hand_back()
        await feeder.flush()
        await turns()
        assert sorted(control.released) == [100, 101, 102, 103, 104, 105]
        assert len(engine.aborted) == 4
        asked = len(control.asked)
        await turns()
        assert len(control.asked) == asked


async def test_shedding_aborts_the_newest_and_hands_them_back() -> None:
    control, engine = ControlPlane([a_grant(1, *[0] * 8)]), Engine()
    async with feeding(control, engine, 8) as feeder:
        feeder.observe(a_load(0, running=8))
        feeder.observe(a_load(1, running=8, waiting=3))
        await turns()
        assert numbers(engine) == [100, 101, 102, 103, 104]
        assert sorted(control.released) == [105, 106, 107]
        assert feeder.in_flight == 5


async def test_what_the_engine_holds_back_is_shed_only_when_that_lasts() -> None:
    control, engine = ControlPlane([a_grant(1, *[0] * 8)]), Engine()
    told, clock = ToldSlots(is_obeyed=True), InstantClock()
    async with feeding(control, engine, 8, told=told, clock=clock) as feeder:
        feeder.observe(a_load(0, running=8))
        feeder.observe(a_load(1, running=8, waiting=3))
        # what now waits was told to; it is no sign that chat waits for a slot
        clock.at_s = 9.0
        feeder.observe(a_load(2, running=8, waiting=3))
        await turns()
        assert told.limits == [8, 5, 5]
        assert (feeder.in_flight, engine.aborted) == (8, [])
        clock.at_s = 11.0
        feeder.observe(a_load(3, running=8, waiting=3))
        await turns()
        assert sorted(control.released) == [105, 106, 107]


async def test_a_dip_of_the_cap_aborts_nothing_that_the_engine_can_hold() -> None:
    control, engine = ControlPlane([a_grant(1, *[0] * 8)]), Engine()
    told, clock = ToldSlots(is_obeyed=True), InstantClock()
    async with feeding(control, engine, 8, told=told, clock=clock) as feeder:
        feeder.observe(a_load(0, running=8))
        feeder.observe(a_load(1, running=8, waiting=3))
        for second in (6.0, 12.0, 18.0):
            clock.at_s = second
            feeder.observe(a_load(second, running=8))
        await turns()
        # all of the cap came back but the slot that is kept free after chat
        assert told.limits == [8, 5, 7, 7, 7]
        assert engine.aborted == [b"107"]
        assert feeder.in_flight == 7


async def test_results_wait_for_a_control_plane_that_is_away() -> None:
    control, engine = ControlPlane([a_grant(1, 0, 0)]), Engine()
    async with feeding(control, engine, 2):
        control.is_away = True
        engine.answer(b"100", b"101")
        await turns()
        assert control.settled == []
        control.is_away = False
        await turns()
        assert control.settled == [100, 101]


async def test_a_lost_lease_is_dropped_with_all_its_work() -> None:
    control, engine = ControlPlane([a_grant(1, 0, 0, 0)]), Engine()
    async with feeding(control, engine, 3) as feeder:
        control.is_fenced = True
        engine.answer(b"100")
        await turns()
        assert feeder.in_flight == 0
        assert sorted(engine.aborted) == [b"101", b"102"]
    assert (control.settled, control.released) == ([], [])


async def test_a_lease_is_named_until_nothing_of_it_is_owed() -> None:
    control, engine = ControlPlane([a_grant(1, 0)]), Engine()
    async with feeding(control, engine, 2):
        assert control.asked[-1] == (control.asked[-1][0], (1,))
        engine.answer(b"100")
        await turns()
        assert control.asked[-1][1] == ()
