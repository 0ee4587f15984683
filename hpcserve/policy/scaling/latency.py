"""How much of chat's load is batch's doing.

Batch that rides beside chat lengthens the time between tokens, within the promise; each chat
request then stays longer, and several times as many are in flight. That is no reason for more
instances: the agents shed batch when slots run out. So requests in flight are taken as they would
be without batch: times ITL without batch over ITL now, both as the engines report them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hpcserve.domain.fleet import Fleet
from hpcserve.domain.instance import InstanceState, Role

#: weight of a new reading without batch
_ALPHA = 0.1
#: tokens below which a reading is noise
_TOKENS_MIN = 50


@dataclass(slots=True)
class Latency:
    """What engines said, by model."""

    #: (sum s, tokens) by instance, at the last look
    _seen: dict[str, tuple[float, int]] = field(default_factory=dict)
    _without_batch_s: dict[str, float] = field(default_factory=dict)
    _now_s: dict[str, float] = field(default_factory=dict)
    _shared: frozenset[str] = frozenset()

    def observe(self, fleet: Fleet) -> None:
        """Take a snapshot in; the same one twice changes nothing."""
        self._shared = frozenset(b.model for b in fleet.backlog if b.leased)
        seen: dict[str, tuple[float, int]] = {}
        sums: dict[str, tuple[float, int]] = {}
        for instance in fleet.instances:
            load = instance.load
            if load is None or instance.role is Role.BATCH:
                continue
            if instance.state is not InstanceState.READY:
                continue
            seen[instance.id] = (load.itl_sum_s, load.itl_count)
            before = self._seen.get(instance.id)
            if before is not None and load.itl_count > before[1]:
                sum_s, tokens = sums.get(instance.model, (0.0, 0))
                sums[instance.model] = (
                    sum_s + load.itl_sum_s - before[0],
                    tokens + load.itl_count - before[1],
                )
        self._seen = seen
        for model, (sum_s, tokens) in sums.items():
            if tokens >= _TOKENS_MIN:
                self._take(model, sum_s / tokens)

    def _take(self, model: str, itl_s: float) -> None:
        self._now_s[model] = itl_s
        if model not in self._shared:
            last = self._without_batch_s.get(model, itl_s)
            self._without_batch_s[model] = last + _ALPHA * (itl_s - last)

    def own_part(self, model: str) -> float:
        """Return the part of the requests in flight that would be there without batch, 0..1."""
        without_s, now_s = self._without_batch_s.get(model), self._now_s.get(model)
        if model not in self._shared or without_s is None or not now_s:
            return 1.0
        return min(1.0, without_s / now_s)
