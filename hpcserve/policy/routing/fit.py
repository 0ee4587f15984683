"""Inter-token latency as a line over the requests that run: what an engine's reports tell.

Ordinary least squares over the last readings. A slope needs readings at different loads; without
them the line goes through the origin, which overstates what a request adds and so errs on the side
of spreading.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hpcserve.domain.load import EngineLoad

#: readings that a fit looks at; older ones come from another mix of requests
READINGS_MAX = 64


class Reading(NamedTuple):
    """Mean over one interval between two heartbeats."""

    running: float
    itl_ms: float


class Line(NamedTuple):
    """`itl_ms = base_ms + per_request_ms * running`."""

    base_ms: float
    per_request_ms: float


def reading(before: EngineLoad, after: EngineLoad) -> Reading | None:
    """Return the mean between two reports of one engine; None when it made no tokens."""
    tokens = after.itl_count - before.itl_count
    running = (before.running + after.running) / 2
    if tokens <= 0 or running <= 0:
        return None
    return Reading(running, (after.itl_sum_s - before.itl_sum_s) / tokens * 1000)


def fit(readings: Sequence[Reading]) -> Line | None:
    """Return the line through *readings*; None without any."""
    if not readings:
        return None
    count = len(readings)
    mean_running = sum(each.running for each in readings) / count
    mean_ms = sum(each.itl_ms for each in readings) / count
    spread = sum((each.running - mean_running) ** 2 for each in readings)
    if spread > 0:
        slope = (
            sum((each.running - mean_running) * (each.itl_ms - mean_ms) for each in readings)
            / spread
        )
        base = mean_ms - slope * mean_running
        if slope > 0 and base >= 0:
            return Line(base, slope)
    return Line(0.0, mean_ms / mean_running)
