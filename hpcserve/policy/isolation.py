"""How many batch requests may run together, given how often they were lost with their instance.

A request that crashes its engine takes all that run beside it along, and the ledger cannot tell
which one it was. So requests that were lost before run in ever smaller company, apart from those
that were not: all at once, then a square root of that, then alone. The guilty one is found after
three crashes, and no neighbour is charged more than twice.
"""

from __future__ import annotations

from math import isqrt


def suspicion(attempts: int) -> int:
    """Return the company that a request may keep: 0 any, 1 small, 2 none."""
    return min(attempts, 2)


def company(suspicion: int, window: int) -> int:
    """Return how many requests of this suspicion may run at once where *window* others may."""
    return (window, min(window, max(1, isqrt(window))), min(window, 1))[suspicion]
