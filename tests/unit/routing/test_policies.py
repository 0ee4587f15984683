"""What each routing policy is for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from hpcserve.domain.load import EngineLoad
from hpcserve.errors import ConfigError
from hpcserve.policy.routing.affinity import LOAD_FACTOR, affinity
from hpcserve.policy.routing.eligible import eligible
from hpcserve.policy.routing.fit import Line, Reading, fit, reading
from hpcserve.policy.routing.least_loaded import least_loaded
from hpcserve.policy.routing.packing import packing
from hpcserve.policy.routing.registry import policy
from hpcserve.policy.routing.seat import Ask, Seat
from hpcserve.policy.routing.slo_headroom import slo_headroom


@dataclass
class Busy:
    requests: int = 0
    tokens: int = 0


def seats(*headrooms_s: float, slots: int = 8, **more: float) -> list[Seat]:
    return [
        Seat(instance_id=f"inst-{n}", headroom_s=headroom, slots=slots, **more)
        for n, headroom in enumerate(headrooms_s)
    ]


def test_least_loaded_counts_tokens_and_takes_turns_among_equals():
    places = seats(1, 1, 1)
    assert least_loaded(Ask(0, 1), places, [Busy(1, 9000), Busy(9, 900), Busy(1, 9000)]) == 1
    idle = [Busy(), Busy(), Busy()]
    assert [least_loaded(Ask(turn, 1), places, idle) for turn in range(4)] == [0, 1, 2, 0]


def test_packing_fills_the_longest_lived_first_and_then_spreads():
    places = seats(100.0, 9000.0, 500.0)
    assert packing(Ask(0, 1), places, [Busy(), Busy(5), Busy()]) == 1
    assert packing(Ask(0, 1), places, [Busy(), Busy(6), Busy()]) == 2
    full = [Busy(7, 70), Busy(7, 50), Busy(7, 60)]
    assert packing(Ask(0, 1), places, full) == 1


def test_affinity_keeps_a_conversation_and_moves_few_when_a_seat_goes():
    places = seats(1, 1, 1, 1)
    idle = [Busy() for _ in places]
    before = [affinity(Ask(0, 1, key), places, idle) for key in range(400)]
    assert before == [affinity(Ask(9, 1, key), places, idle) for key in range(400)]
    assert min(before.count(index) for index in range(4)) > 60
    after = [affinity(Ask(0, 1, key), places[:3], idle[:3]) for key in range(400)]
    assert all(b == a for b, a in zip(before, after, strict=True) if b != 3)


def test_affinity_bounds_the_load_of_a_popular_prefix():
    places = seats(1, 1, 1, 1)
    loads = [Busy() for _ in places]
    for turn in range(400):
        loads[affinity(Ask(turn, 1, 42), places, loads)].requests += 1
    assert max(load.requests for load in loads) <= LOAD_FACTOR * 401 / 4 + 1


def test_slo_headroom_packs_as_long_as_the_promise_is_kept():
    places = seats(1, 1, itl_base_ms=20.0, itl_per_request_ms=20.0, itl_slo_ms=100.0)
    assert slo_headroom(Ask(0, 1), places, [Busy(2), Busy(0)]) == 0
    assert slo_headroom(Ask(0, 1), places, [Busy(4), Busy(1)]) == 1
    assert slo_headroom(Ask(0, 1), places, [Busy(7), Busy(5)]) == 1


def test_slo_headroom_without_a_fit_is_least_loaded():
    places = seats(1, 1, itl_slo_ms=100.0)
    assert slo_headroom(Ask(0, 1), places, [Busy(2, 20), Busy(1, 10)]) == 1


def test_seats_that_end_too_soon_are_left_alone_unless_all_do():
    assert eligible(seats(10.0, 500.0), 30.0) == [1]
    assert eligible(seats(10.0, 20.0), 30.0) == [0, 1]


def test_fit_finds_the_line():
    line = fit([Reading(running, 5.0 + 2.0 * running) for running in (1, 4, 9)])
    assert line is not None
    assert line.base_ms == pytest.approx(5.0)
    assert line.per_request_ms == pytest.approx(2.0)
    assert fit([Reading(4.0, 20.0), Reading(4.0, 20.0)]) == Line(0.0, 5.0)
    assert fit([]) is None


def test_reading_is_the_mean_between_two_reports():
    at = datetime(2026, 1, 1, tzinfo=UTC)
    first = EngineLoad(
        at=at,
        running=2,
        waiting=0,
        kv_cache_used_ratio=0.1,
        prompt_tokens_total=0,
        generation_tokens_total=0,
        requests_total=0,
        preemptions_total=0,
        ttft_sum_s=0.0,
        ttft_count=0,
        itl_sum_s=1.0,
        itl_count=100,
        prefix_cache_query_tokens_total=0,
        prefix_cache_hit_tokens_total=0,
    )
    later = replace(first, at=at + timedelta(seconds=5), running=4, itl_sum_s=3.0, itl_count=200)
    assert reading(first, later) == Reading(3.0, 20.0)
    assert reading(first, first) is None


def test_unknown_policy_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean least_loaded"):
        policy("least_load")
