"""What chat's requests in flight would be on instances that chat fills: a measure of its arrivals.

Requests in flight are arrivals times their length times ITL. ITL hangs on everything: batch that
rides along lengthens it several-fold, within the promise, and so do fewer instances, since prompts
hold the engine. A scaler that follows requests in flight chases its own tail. So they are taken as
`running * ITL(full) / ITL(now)`: ITL(now) from the engines' counters, ITL(full) from the line
`ITL = a + b * running per instance`, fitted over the time without batch, at the slots that chat may
fill. Until there is a fit, requests in flight count as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hpcserve.domain.fleet import Fleet
from hpcserve.domain.instance import InstanceState, Role

#: weight that a look back loses with each new one: the fit remembers some hours
_FORGET = 0.998
#: looks that make a fit
_ENOUGH = 10.0
#: tokens below which a reading is noise
_TOKENS_MIN = 50
#: the line is followed so many times beyond the mean ITL that it was fitted at
_BEYOND_MAX = 4.0


@dataclass(slots=True)
class _Fit:
    """Sums of a weighted least-squares line."""

    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def take(self, x: float, y: float) -> None:
        """Take one point in."""
        self.weight = _FORGET * self.weight + 1
        self.x = _FORGET * self.x + x
        self.y = _FORGET * self.y + y
        self.xx = _FORGET * self.xx + x * x
        self.xy = _FORGET * self.xy + x * y

    def at(self, x: float) -> float:
        """Return the line's value; it never falls, and is not followed too far."""
        mean_x, mean_y = self.x / self.weight, self.y / self.weight
        spread = self.xx / self.weight - mean_x * mean_x
        slope = (self.xy / self.weight - mean_x * mean_y) / spread if spread > 1.0 else 0.0
        value = mean_y + max(0.0, slope) * (x - mean_x)
        return min(_BEYOND_MAX * mean_y, max(value, mean_y / _BEYOND_MAX))


@dataclass(slots=True)
class Latency:
    """What engines said, by model."""

    #: (sum s, tokens) by instance, at the last look
    _seen: dict[str, tuple[float, int]] = field(default_factory=dict)
    _now_s: dict[str, float] = field(default_factory=dict)
    _fits: dict[str, _Fit] = field(default_factory=dict)

    def observe(self, fleet: Fleet) -> None:
        """Take a snapshot in; the same one twice changes nothing."""
        shared = frozenset(b.model for b in fleet.backlog if b.leased)
        seen: dict[str, tuple[float, int]] = {}
        sums: dict[str, tuple[float, int, int]] = {}
        for instance in fleet.instances:
            load = instance.load
            if load is None or instance.role is Role.BATCH:
                continue
            if instance.state is not InstanceState.READY:
                continue
            seen[instance.id] = (load.itl_sum_s, load.itl_count)
            before = self._seen.get(instance.id)
            if before is not None and load.itl_count > before[1]:
                sum_s, tokens, count = sums.get(instance.model, (0.0, 0, 0))
                sums[instance.model] = (
                    sum_s + load.itl_sum_s - before[0],
                    tokens + load.itl_count - before[1],
                    count + 1,
                )
        self._seen = seen
        for model, (sum_s, tokens, count) in sums.items():
            if tokens < _TOKENS_MIN:
                continue
            self._now_s[model] = sum_s / tokens
            demand = fleet.demand.get(model)
            if model not in shared and demand is not None:
                self._fits.setdefault(model, _Fit()).take(demand.running / count, sum_s / tokens)

    def to_full(self, model: str, full: float, promised_s: float) -> float:
        """Return what to multiply requests in flight with.

        Args:
            model: whose.
            full: requests on an instance that chat fills.
            promised_s: ITL that is never exceeded on purpose.

        """
        fit, now_s = self._fits.get(model), self._now_s.get(model)
        if fit is None or fit.weight < _ENOUGH or not now_s:
            return 1.0
        return min(fit.at(full), promised_s) / now_s
