"""Least loaded: the seat with the fewest tokens in flight for its size, then the fewest requests.

Tokens and not requests, since one request of 100,000 tokens weighs more than fifty of 100. Equal
seats take turns, so that idle instances share the work instead of the first getting all of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpcserve.policy.routing.seat import Ask, Load, Seat


def least_loaded(ask: Ask, seats: Sequence[Seat], loads: Sequence[Load]) -> int:
    """Return the index of the least loaded seat."""
    count = len(seats)
    start = ask.turn % count
    best = start
    best_load = (loads[start].tokens / seats[start].slots, loads[start].requests)
    for step in range(1, count):
        index = (start + step) % count
        load = (loads[index].tokens / seats[index].slots, loads[index].requests)
        if load < best_load:
            best, best_load = index, load
    return best
