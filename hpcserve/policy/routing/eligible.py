"""The filter before every policy: which READY seats may get new requests at all.

A seat whose allocation ends before a usual request would is left to what it already has. When that
leaves nothing, all are kept: a request that may have to be continued elsewhere is better than none.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpcserve.policy.routing.seat import Seat


def eligible(seats: Sequence[Seat], usual_request_s: float) -> list[int]:
    """Return indices of seats with time for a request of *usual_request_s* (its p95)."""
    lasting = [index for index, seat in enumerate(seats) if seat.headroom_s > usual_request_s]
    return lasting or list(range(len(seats)))
