"""Pauses between repetitions: each twice as long as the last, with jitter, up to a longest one."""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """The pauses after failures in a row."""

    def __init__(self, jitter: Callable[[], float], *, first_s: float, max_s: float) -> None:
        """Take a source of numbers from 0 to 1, the first and the longest pause."""
        self._jitter = jitter
        self._first_s = first_s
        self._max_s = max_s
        self._failures = 0

    def failed(self) -> float:
        """Return how long to pause after one more failure: 0.5 to 1 times the doubled pause."""
        whole_s = min(self._max_s, self._first_s * 2.0**self._failures)
        if whole_s < self._max_s:
            self._failures += 1
        return whole_s * (1 + self._jitter()) / 2

    def succeeded(self) -> None:
        """Begin anew."""
        self._failures = 0
