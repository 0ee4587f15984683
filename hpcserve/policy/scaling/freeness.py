"""Baseline: Llumnix's autoscaling on freeness (OSDI 2024, arXiv 2406.03243, and its code).

Formula: freeness of an instance = (free KV blocks - blocks of waiting requests) / (running +
waiting), in steps that its batch may still grow. Each 10 s: one more when the mean is below LOW,
one less when it is above HIGH; untuned 10 and 60. The KV cache is taken to hold 512 tokens for each
of `max_num_seqs`, since the metrics give its use as a ratio. Batch requests queue like others.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import final

from hpcserve.config import Scaling
from hpcserve.domain.fleet import Fleet
from hpcserve.domain.instance import Instance, InstanceState, Role
from hpcserve.domain.model import Model
from hpcserve.policy.scaling.chat import bounded, chat_of
from hpcserve.policy.scaling.target import Target

_EVERY = timedelta(seconds=10)
_BLOCK_TOKENS = 16
_TOKENS_EACH = 512
#: freeness of an idle instance
_FREE = 1000.0


@dataclass(frozen=True, slots=True)
class _Wish:
    at: datetime
    count: int


@final
class FreenessScaler:
    """Knows how full instances are, no SLO and no deadline."""

    def __init__(self, settings: Scaling, *, low: float = 10.0, high: float = 60.0) -> None:
        """Take the `[scaling]` section and the two thresholds."""
        self._settings = settings
        self._low = low
        self._high = high
        self._wishes: dict[str, _Wish] = {}

    def targets(self, fleet: Fleet, now: datetime) -> tuple[Target, ...]:
        """Return one MIXED target a model."""
        return tuple(self._target(model, fleet, now) for model in fleet.models.values())

    def _target(self, model: Model, fleet: Fleet, now: datetime) -> Target:
        serving = [
            i
            for i in fleet.instances
            if i.model == model.name and i.state is InstanceState.READY and i.load is not None
        ]
        last = self._wishes.get(model.name)
        count = max(1, model.min_instances) if last is None else last.count
        mean = self._mean(model, serving, fleet, now)
        if last is None or now - last.at >= _EVERY:
            # missing evidence changes nothing
            step = 0 if mean is None else (mean < self._low) - (mean > self._high)
            count = bounded(max(1, count + step), model)
            self._wishes[model.name] = _Wish(now, count)
        said = "nobody serves yet" if mean is None else f"mean freeness is {mean:.0f} steps"
        return Target(
            model=model.name,
            role=Role.MIXED,
            count=count,
            reason=f"{said}; wanted between {self._low:.0f} and {self._high:.0f}",
            release_now=True,
        )

    def _mean(
        self, model: Model, serving: list[Instance], fleet: Fleet, now: datetime
    ) -> float | None:
        if not serving:
            return None
        queued = chat_of(fleet, model, self._settings.demand_memory_s, now).waiting + sum(
            b.waiting for b in fleet.backlog if b.model == model.name
        )
        each = queued / len(serving)
        return sum(_freeness(model, i, each) for i in serving) / len(serving)


def _freeness(model: Model, instance: Instance, queued: float) -> float:
    load = instance.load
    assert load is not None
    blocks_each = _TOKENS_EACH / _BLOCK_TOKENS
    free = (1.0 - load.kv_cache_used_ratio) * model.max_num_seqs * blocks_each
    waiting = load.waiting + queued
    requests = load.running + waiting
    return _FREE if requests == 0 else min(_FREE, (free - waiting * blocks_each) / requests)
