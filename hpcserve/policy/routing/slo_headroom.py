"""SLO headroom: the busiest seat that still keeps the promised inter-token latency.

The latency that a seat would have with one more request is predicted from the line that `fit.py`
puts through what its engine reported. Among the seats that keep the promise the one with the least
headroom gets the request, which packs; when none does, the one that misses by least.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpcserve.policy.routing.least_loaded import least_loaded
from hpcserve.policy.routing.seat import Ask, Load, Seat


def slo_headroom(ask: Ask, seats: Sequence[Seat], loads: Sequence[Load]) -> int:
    """Return the index of the seat with the least headroom that is left."""
    kept, kept_ms = -1, float("inf")
    missed, missed_ms = -1, float("-inf")
    for index, seat in enumerate(seats):
        requests = loads[index].requests + 1
        if seat.itl_per_request_ms <= 0.0:
            # nothing is known of this engine yet: no prediction is better than a wrong one
            return least_loaded(ask, seats, loads)
        left_ms = seat.itl_slo_ms - seat.itl_base_ms - seat.itl_per_request_ms * requests
        if requests > seat.slots:
            # it would wait in the engine's queue, whatever the line says
            left_ms = min(left_ms, -seat.itl_slo_ms * requests / seat.slots)
        if left_ms >= 0.0:
            if left_ms < kept_ms:
                kept, kept_ms = index, left_ms
        elif left_ms > missed_ms:
            missed, missed_ms = index, left_ms
    return kept if kept >= 0 else missed
