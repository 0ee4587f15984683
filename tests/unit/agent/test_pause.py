"""Pauses between repetitions."""

from __future__ import annotations

from hpcserve.agent.pause import Backoff


def test_pauses_double_up_to_the_longest_and_begin_anew() -> None:
    backoff = Backoff(lambda: 1.0, first_s=1, max_s=5)
    assert [backoff.failed() for _ in range(5)] == [1, 2, 4, 5, 5]
    backoff.succeeded()
    assert backoff.failed() == 1


def test_jitter_takes_up_to_half_away() -> None:
    assert Backoff(lambda: 0.0, first_s=1, max_s=5).failed() == 0.5


def test_a_long_outage_overflows_nothing() -> None:
    backoff = Backoff(lambda: 1.0, first_s=0.2, max_s=5)
    assert [backoff.failed() for _ in range(5000)][-1] == 5
