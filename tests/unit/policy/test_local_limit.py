"""The batch cap of one instance."""

from __future__ import annotations

import random

import pytest

from hpcserve.policy.isolation import company, suspicion
from hpcserve.policy.local_limit import LocalLimit, Reading


def limit(cap: int = 64, **fields: object) -> LocalLimit:
    base = {"cap": cap, "ceiling": 64, "itl_slo_s": 0.1, "memory_s": 60.0}
    return LocalLimit(**{**base, **fields})


def seen(**fields: object) -> Reading:
    base = {
        "interactive": 0,
        "waiting": 0,
        "batch": 64,
        "itl_s": 0.05,
        "tokens_per_s": 1000.0,
        "preempted": 0,
        "quiet_s": None,
    }
    return Reading(**{**base, **fields})


def chat(**fields: object) -> Reading:
    return seen(**{"interactive": 1, "quiet_s": 0.0, **fields})


def test_without_chat_the_engine_gets_a_few_more_than_it_has_slots() -> None:
    assert limit().next(seen()).cap == 72


def test_without_chat_the_promise_of_chat_does_not_count() -> None:
    assert limit().next(seen(itl_s=9.0)).cap == 72


def test_chat_keeps_slots_free_even_after_it_left() -> None:
    assert limit().next(chat()).cap == 56
    assert limit(cap=56).next(seen(quiet_s=59.0)).cap == 56
    assert limit(cap=56).next(seen(quiet_s=61.0)).cap == 72


def test_a_broken_promise_halves_the_cap_down_to_nothing() -> None:
    caps, now = [], limit(cap=8)
    for _ in range(5):
        now = now.next(chat(itl_s=0.2, batch=now.cap))
        caps.append(now.cap)
    assert caps == [4, 2, 1, 0, 0]
    assert now.reason == "ITL is 200 of 100 ms"


def test_a_kept_promise_grows_a_cap_that_binds() -> None:
    assert limit(cap=16).next(chat(itl_s=0.05, batch=16)).cap == 24
    assert limit(cap=0).next(chat(itl_s=0.09, batch=0)).cap == 1


def test_a_cap_that_does_not_bind_stays() -> None:
    assert limit(cap=16).next(chat(itl_s=0.01, batch=5)).cap == 16


def test_chat_that_waits_inside_gets_slots_at_once() -> None:
    assert limit(cap=64).next(chat(waiting=10, batch=64, itl_s=0.01)).cap == 54
    assert limit(cap=4).next(chat(waiting=10, batch=4, itl_s=0.01)).cap == 0


def test_lost_throughput_counts_only_with_requests_pushed_out() -> None:
    before = limit(tokens_per_s=2000.0)
    assert before.next(seen(tokens_per_s=1000.0)).cap == 72
    assert before.next(seen(tokens_per_s=1000.0, preempted=3)).cap == 32
    assert before.next(seen(tokens_per_s=1900.0, preempted=3)).cap == 72
    assert before.next(seen(tokens_per_s=1000.0, preempted=3, batch=10)).cap == 72


def test_noise_does_not_walk_it_down() -> None:
    rng, now = random.Random(7), limit(cap=32)
    for _ in range(1000):
        now = now.next(chat(itl_s=0.05, tokens_per_s=rng.uniform(100, 2000), batch=20))
    assert now.cap == 32


def test_it_comes_back_within_seconds_after_chat_stops() -> None:
    now, ticks = limit(cap=1), 0
    while now.cap < 56:
        now = now.next(seen(batch=now.cap, quiet_s=1.0))
        ticks += 1
    assert ticks <= 6


@pytest.mark.parametrize(("attempts", "together"), [(0, 256), (1, 16), (2, 1), (5, 1)])
def test_company_shrinks_with_each_loss(attempts: int, together: int) -> None:
    assert company(suspicion(attempts), 256) == together


@pytest.mark.parametrize("level", [0, 1, 2])
def test_company_fits_any_window(level: int) -> None:
    for window in range(20):
        assert company(level, window) <= window
        assert company(level, window) >= min(window, 1)
