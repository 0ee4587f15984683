"""Packing: fill the instances that live longest, so that old allocations run empty and can go.

In order of the time left, the longest first, the first seat that is less than FULL_SHARE busy gets
the request. When all are busier than that, the least loaded one does.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpcserve.policy.routing.least_loaded import least_loaded
from hpcserve.policy.routing.seat import Ask, Load, Seat

#: share of its slots up to which a seat is filled; the rest is for what comes unevenly
FULL_SHARE = 0.75


def packing(ask: Ask, seats: Sequence[Seat], loads: Sequence[Load]) -> int:
    """Return the index of the longest-lived seat that has room."""
    best = -1
    for index, seat in enumerate(seats):
        if loads[index].requests >= FULL_SHARE * seat.slots:
            continue
        if best < 0 or seat.headroom_s > seats[best].headroom_s:
            best = index
    return best if best >= 0 else least_loaded(ask, seats, loads)
