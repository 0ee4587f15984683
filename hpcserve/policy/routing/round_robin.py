"""Round robin: each seat in its turn, whatever its load. The baseline that others must beat."""

from __future__ import annotations

from collections.abc import Sequence

from hpcserve.policy.routing.seat import Ask, Load, Seat


def round_robin(ask: Ask, seats: Sequence[Seat], loads: Sequence[Load]) -> int:  # noqa: ARG001 - a Policy
    """Return the next seat's index."""
    return ask.turn % len(seats)
