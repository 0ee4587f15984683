"""Batch requests that one instance finishes in a second, measured from the backlog's decline.

Windows of a minute in which work was in flight; mean and variance are exponentially weighted. What
chat takes from mixed instances is in it, so a new batch instance does at least as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from math import sqrt

from hpcserve.domain.fleet import Fleet
from hpcserve.domain.instance import InstanceState

_WINDOW_S = 60.0
#: weight of a new window
_ALPHA = 0.2


@dataclass(slots=True)
class _Model:
    since: datetime
    #: open requests by batch at the beginning of the window
    open: dict[str, int]
    serving: int
    mean: float | None = None
    variance: float = 0.0


@dataclass(slots=True)
class Rates:
    """What was measured, by model."""

    _models: dict[str, _Model] = field(default_factory=dict)

    def observe(self, fleet: Fleet, now: datetime) -> None:
        """Take a snapshot in; the same one twice changes nothing."""
        serving: dict[str, int] = {}
        for instance in fleet.instances:
            if instance.state is InstanceState.READY:
                serving[instance.model] = serving.get(instance.model, 0) + 1
        work: dict[str, dict[str, int]] = {}
        leased: set[str] = set()
        for batch in fleet.backlog:
            work.setdefault(batch.model, {})[batch.batch_id] = batch.waiting + batch.leased
            if batch.leased:
                leased.add(batch.model)
        for model in fleet.models:
            known = self._models.get(model)
            here = serving.get(model, 0)
            if known is None:
                self._models[model] = _Model(now, work.get(model, {}), here)
                continue
            span_s = (now - known.since).total_seconds()
            if span_s < _WINDOW_S:
                continue
            left = work.get(model, {})
            done = sum(max(0, was - left[name]) for name, was in known.open.items() if name in left)
            if model in leased and done and min(here, known.serving):
                _take(known, done / span_s / max(here, known.serving))
            known.since, known.open, known.serving = now, left, here

    def per_s(self, model: str, first: float, z: float = 0.0) -> float:
        """Return the rate of one instance with *z* deviations taken off, at least a third."""
        known = self._models.get(model)
        if known is None or known.mean is None:
            return first
        return max(known.mean - z * sqrt(known.variance), known.mean / 3)


def _take(known: _Model, rate: float) -> None:
    if known.mean is None:
        known.mean = rate
        return
    off = rate - known.mean
    known.mean += _ALPHA * off
    known.variance = (1 - _ALPHA) * (known.variance + _ALPHA * off * off)
