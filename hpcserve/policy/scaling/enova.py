"""Baseline: ENOVA's detector and scaler, as its public code does it (arXiv 2407.09486, v0.0.7).

Each 30 s over the last three minute bins. Up: at least 50 requests waited in every bin; replicas
become ceil(replicas * arrived / finished), between replicas and the catalog's bound. Down: KV use
at most 10 % and running at most a tenth of `max_num_seqs` on average; replicas become
ceil(replicas / 2). An instance without a reading stops every change. Roles and classes: none.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import ceil
from typing import final

from hpcserve.config import Scaling
from hpcserve.domain.fleet import Fleet
from hpcserve.domain.instance import InstanceState, Role
from hpcserve.domain.model import Model
from hpcserve.policy.scaling.chat import bounded, chat_of
from hpcserve.policy.scaling.target import Target

_EVERY = timedelta(seconds=30)
_WINDOW = timedelta(minutes=3)
_PENDING = 50
_QUIET_RATIO = 0.1


@dataclass(frozen=True, slots=True)
class _Sample:
    at: datetime
    waiting: int
    running_ratio: float
    kv_used_ratio: float
    finished: int


@dataclass(slots=True)
class _Watch:
    count: int
    decided_at: datetime | None = None
    samples: deque[_Sample] = field(default_factory=deque)


@final
class EnovaScaler:
    """Knows saturation, no SLO and no deadline."""

    def __init__(self, settings: Scaling) -> None:
        """Take the `[scaling]` section."""
        self._settings = settings
        self._watches: dict[str, _Watch] = {}

    def targets(self, fleet: Fleet, now: datetime) -> tuple[Target, ...]:
        """Return one MIXED target a model."""
        return tuple(self._target(model, fleet, now) for model in fleet.models.values())

    def _target(self, model: Model, fleet: Fleet, now: datetime) -> Target:
        watch = self._watches.setdefault(model.name, _Watch(bounded(1, model)))
        sample = self._sample(model, fleet, now)
        reason = "not every instance has a reading"
        if sample is not None:
            watch.samples.append(sample)
            while now - watch.samples[0].at > _WINDOW:
                watch.samples.popleft()
            if watch.decided_at is None or now - watch.decided_at >= _EVERY:
                watch.decided_at = now
                watch.count = bounded(_next(watch), model)
            reason = f"{sample.waiting} requests wait, KV use is {sample.kv_used_ratio:.0%}"
        return Target(
            model=model.name, role=Role.MIXED, count=watch.count, reason=reason, release_now=True
        )

    def _sample(self, model: Model, fleet: Fleet, now: datetime) -> _Sample | None:
        mine = [i for i in fleet.instances if i.model == model.name]
        serving = [i for i in mine if i.state is InstanceState.READY]
        loads = [i.load for i in serving if i.load is not None]
        if not loads or len(loads) < len(serving):
            return None
        chat = chat_of(fleet, model, self._settings.demand_memory_s, now)
        batch = sum(b.waiting for b in fleet.backlog if b.model == model.name)
        slots = len(loads) * model.max_num_seqs
        return _Sample(
            at=now,
            waiting=chat.waiting + batch,
            running_ratio=sum(load.running for load in loads) / slots,
            kv_used_ratio=sum(load.kv_cache_used_ratio for load in loads) / len(loads),
            finished=sum(load.requests_total for load in loads),
        )


def _next(watch: _Watch) -> int:
    first, last = watch.samples[0], watch.samples[-1]
    if last.at - first.at < _WINDOW - _EVERY:
        return watch.count
    if min(s.waiting for s in watch.samples) >= _PENDING:
        finished = max(1, last.finished - first.finished)
        arrived = finished + last.waiting - first.waiting
        return ceil(watch.count * max(1.0, arrived / finished))
    count = len(watch.samples)
    quiet = (
        sum(s.kv_used_ratio for s in watch.samples) / count <= _QUIET_RATIO
        and sum(s.running_ratio for s in watch.samples) / count <= _QUIET_RATIO
    )
    return ceil(watch.count / 2) if quiet else watch.count
