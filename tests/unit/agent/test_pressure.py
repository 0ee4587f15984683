"""What is read out of successive readings of an engine."""

from __future__ import annotations

from hpcserve.agent.pressure import Pressure
from hpcserve.policy.local_limit import LocalLimit
from tests.unit.agent.loads import a_load


def a_pressure(cap: int = 16) -> Pressure:
    return Pressure(LocalLimit(cap=cap, ceiling=16, itl_slo_s=0.1, memory_s=60))


def test_batch_alone_is_not_taken_for_chat() -> None:
    pressure = a_pressure()
    pressure.started(16)
    pressure.observe(a_load(0, running=16), in_flight=16)
    # two of ours have just ended, the engine's figure is older
    assert pressure.observe(a_load(1, running=16, itl_sum_s=9, itl_count=10), in_flight=14) == 18


def test_what_the_engine_has_beyond_ours_is_chat() -> None:
    pressure = a_pressure()
    pressure.started(14)
    pressure.observe(a_load(0, running=14), in_flight=14)
    slow = a_load(1, running=15, itl_sum_s=2, itl_count=10)
    assert pressure.observe(slow, in_flight=14) == 8


def test_the_rate_is_unknown_until_something_finished() -> None:
    pressure = a_pressure()
    pressure.observe(a_load(0), in_flight=0)
    pressure.observe(a_load(1), in_flight=0)
    assert pressure.lines_per_s is None
    for _ in range(10):
        pressure.finished()
    pressure.observe(a_load(2), in_flight=0)
    assert pressure.lines_per_s == 10
    pressure.observe(a_load(3), in_flight=0)
    assert pressure.lines_per_s == 7


def test_readings_at_the_same_instant_decide_nothing() -> None:
    pressure = a_pressure(cap=4)
    pressure.observe(a_load(1), in_flight=0)
    assert pressure.observe(a_load(1), in_flight=0) == 4


def test_requests_pushed_out_by_order_are_no_want_of_kv_cache() -> None:
    caps = []
    for is_obeyed in (True, False):
        pressure = a_pressure()
        pressure.started(14)
        pressure.observe(a_load(0, running=14), in_flight=14, is_obeyed=is_obeyed)
        fast = {"generation_tokens_total": 1000, "itl_sum_s": 2, "itl_count": 10}
        pressure.observe(a_load(1, running=15, **fast), in_flight=14, is_obeyed=is_obeyed)
        halved = pressure.limit.cap
        pushed = {"preemptions_total": 6, "generation_tokens_total": 1500, "itl_count": 20}
        slower = a_load(2, running=9, waiting=6, itl_sum_s=2.9, **pushed)
        caps.append((halved, pressure.observe(slower, in_flight=14, is_obeyed=is_obeyed)))
    # obeyed: ITL is 90 of 100 ms, so it grows; else 6 pushed out and half the tokens are a loss
    assert caps == [(8, 9), (8, 4)]
