"""Asymmetric release: growth at once, release late, since the highest wish of a window holds.

Without it each dip of the load gives GPUs away that may take hours to come back.
"""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta


class Hold:
    """Wishes by name; memory is bounded by the window, since only falling wishes are kept."""

    def __init__(self) -> None:
        """Begin with no wishes."""
        self._wishes: dict[str, deque[tuple[datetime, int]]] = {}

    def highest(self, name: str, wish: int, window_s: float, now: datetime) -> int:
        """Note a wish and return the highest of the last *window_s*."""
        wishes = self._wishes.setdefault(name, deque())
        while wishes and wishes[-1][1] <= wish:
            wishes.pop()
        wishes.append((now, wish))
        while now - wishes[0][0] > timedelta(seconds=window_s):
            wishes.popleft()
        return wishes[0][1]
