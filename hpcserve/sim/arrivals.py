"""Arrivals of interactive requests: counts per step, drawn from a rate and its burstiness."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence

#: above so many expected arrivals a step its count is drawn at one go
_MANY = 200.0


def gamma_counts(
    rng: random.Random, rates: Iterable[tuple[float, float]], cv: float, step_s: float
) -> list[int]:
    """Return arrivals by step of a renewal process with Gamma gaps.

    Args:
        rng: the source of chance.
        rates: (duration s, requests/s) one after another; gaps shrink and grow with the rate.
        cv: coefficient of variation of the gaps; 1 is Poisson, 4 is bursty.
        step_s: length of a step.

    """
    pieces = list(rates)
    counts: list[int] = []
    shape = 1 / (cv * cv)
    due = rng.gammavariate(shape, 1 / shape)
    for duration_s, rate in pieces:
        for _ in range(round(duration_s / step_s)):
            expected = rate * step_s
            if expected > _MANY:
                counts.append(max(0, round(rng.gauss(expected, cv * math.sqrt(expected)))))
                continue
            # in units of the mean gap, so that a change of rate stretches what is left of a gap
            count = 0
            left = expected
            while due <= left:
                left -= due
                count += 1
                due = rng.gammavariate(shape, 1 / shape)
            due -= left
            counts.append(count)
    return counts


def binned(times_s: Sequence[float], duration_s: float, step_s: float) -> list[int]:
    """Return the arrivals of a trace by step; a shorter trace is repeated."""
    span_s = max(times_s[-1] if times_s else 0.0, step_s)
    counts = [0] * max(1, round(duration_s / step_s))
    offset_s = 0.0
    while offset_s < duration_s and times_s:
        for time_s in times_s:
            index = int((offset_s + time_s) / step_s)
            if index >= len(counts):
                break
            counts[index] += 1
        offset_s += span_s
    return counts
