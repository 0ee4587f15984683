"""Affinity: requests that are alike go where their prefix is cached, unless it is too busy there.

Rendezvous hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2018): each seat has a rank
for each affinity, which depends on the two alone, so a seat that comes or goes moves its own share.
The first seat in rank with a free slot and at most LOAD_FACTOR times the mean load gets the
request. Requests without an affinity go to the least loaded seat.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from hpcserve.policy.routing.least_loaded import least_loaded
from hpcserve.policy.routing.seat import Ask, Load, Seat

#: a cache hit is worth a queue of a quarter more than the mean, and not more
LOAD_FACTOR = 1.25
_MASK = 0xFFFFFFFFFFFFFFFF


def affinity(ask: Ask, seats: Sequence[Seat], loads: Sequence[Load]) -> int:
    """Return the index of the seat that is likely to know the prefix."""
    if ask.affinity is None:
        return least_loaded(ask, seats, loads)
    total = sum(load.requests for load in loads)
    bound = LOAD_FACTOR * (total + 1) / len(seats)
    best, best_rank = -1, -1
    for index, seat in enumerate(seats):
        # a bound of less than one request would let nobody in
        if loads[index].requests >= min(seat.slots, max(1.0, bound)):
            continue
        rank = _mixed(ask.affinity ^ zlib.crc32(seat.instance_id.encode()) << 16)
        if rank > best_rank:
            best, best_rank = index, rank
    return best if best >= 0 else least_loaded(ask, seats, loads)


def _mixed(number: int) -> int:
    """Return 64 bits in which each bit depends on all of *number* (splitmix64's finaliser)."""
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & _MASK
    return number ^ (number >> 31)
