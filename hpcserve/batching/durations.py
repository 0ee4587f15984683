"""How long requests of a batch last, measured from grant to result."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping

#: results that a percentile looks back on, and how many make one worth having
_LOOK_BACK, _ENOUGH = 64, 8
_PERCENTILE = 0.95


class Durations:
    """Recent durations by batch, of this process; the oldest are forgotten beyond *limit*."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._granted: OrderedDict[int, tuple[str, float]] = OrderedDict()
        self._by_batch: OrderedDict[str, deque[float]] = OrderedDict()

    def granted(self, lease_id: int, batch_id: str, now_s: float) -> None:
        """Note that a lease begins."""
        self._granted[lease_id] = (batch_id, now_s)
        if len(self._granted) > self._limit:
            self._granted.popitem(last=False)

    def settled(self, lease_id: int, now_s: float) -> None:
        """Note that results of a lease came in."""
        if lease_id not in self._granted:
            return
        batch_id, since_s = self._granted[lease_id]
        self._by_batch.setdefault(batch_id, deque(maxlen=_LOOK_BACK)).append(now_s - since_s)
        self._by_batch.move_to_end(batch_id)
        if len(self._by_batch) > self._limit:
            self._by_batch.popitem(last=False)

    def request_s(self) -> Mapping[str, float]:
        """Return the 95th percentile of each batch that has been measured, s."""
        return {
            batch_id: sorted(seen)[int(_PERCENTILE * (len(seen) - 1))]
            for batch_id, seen in self._by_batch.items()
            if len(seen) >= _ENOUGH
        }
