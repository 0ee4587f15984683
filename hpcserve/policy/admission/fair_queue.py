"""A bounded queue in which users take turns, however many requests each of them has.

Start-time fair queueing (Goyal et al. 1996) over the cost of requests: each user has a virtual time
that grows by what the user was given; whoever is furthest behind comes next, first come first
served among the requests of one user. A user who was idle starts at the queue's time, so nobody
saves up a claim.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of many owners."""

    def __init__(self, limit: int) -> None:
        """Take how many items it holds at most."""
        self._limit = limit
        self._lines: dict[str, deque[tuple[T, float]]] = {}
        #: owners with items, by virtual time; the number keeps first come first
        self._heap: list[tuple[float, int, str]] = []
        #: virtual time that owners with items have used up
        self._used: dict[str, float] = {}
        self._now = 0.0
        self._number = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, owner: str, item: T, cost: float) -> bool:
        """Add an item at the end of its owner's line; False when the queue is full."""
        if self._count >= self._limit:
            return False
        line = self._lines.get(owner)
        if line is None:
            line = self._lines[owner] = deque()
            self._used[owner] = max(self._now, self._used.get(owner, 0.0))
            self._push(owner)
        line.append((item, cost))
        self._count += 1
        return True

    def take(self) -> T | None:
        """Return the item whose turn it is."""
        while self._heap:
            used, _, owner = heapq.heappop(self._heap)
            line = self._lines[owner]
            if not line:
                del self._lines[owner]
                self._forget(owner)
                continue
            item, cost = line.popleft()
            self._count -= 1
            self._now = used
            self._used[owner] = used + cost
            # also with an empty line: its time passes when its turn comes again
            self._push(owner)
            return item
        self._now = 0.0
        return None

    def remove(self, owner: str, item: T) -> None:
        """Take an item out whose owner does not wait any more."""
        line = self._lines.get(owner, deque())
        for entry in line:
            if entry[0] is item:
                line.remove(entry)
                self._count -= 1
                return

    def _push(self, owner: str) -> None:
        self._number += 1
        heapq.heappush(self._heap, (self._used[owner], self._number, owner))

    def _forget(self, owner: str) -> None:
        self._used.pop(owner, None)
