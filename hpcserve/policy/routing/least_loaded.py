"""Least loaded: the seat with the fewest tokens in flight; equal ones take turns.

Tokens and not requests, since one request of 100,000 tokens weighs more than fifty of 100.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpcserve.policy.routing.seat import Ask, Load, Seat


def least_loaded(ask: Ask, seats: Sequence[Seat], loads: Sequence[Load]) -> int:  # noqa: ARG001 - a Policy
    """Return the index of the least loaded seat."""
    tokens = [load.tokens for load in loads]
    least = min(tokens)
    if tokens.count(least) == 1:
        return tokens.index(least)
    start = ask.turn % len(tokens)
    return tokens.index(least, start) if least in tokens[start:] else tokens.index(least)
