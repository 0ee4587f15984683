"""Baseline: `ceil(requests / slots)`, interactive and batch alike, as KEDA scales on a queue.

Formula: desired = ceil((running + waiting + open batch requests) / max_num_seqs). Scale-in waits
for KEDA's default stabilisation window: the highest wish of the last 300 s holds.
"""

from __future__ import annotations

from datetime import datetime
from math import ceil
from typing import final

from hpcserve.config import Scaling
from hpcserve.domain.fleet import Fleet
from hpcserve.domain.instance import Role
from hpcserve.domain.model import Model
from hpcserve.policy.scaling.chat import bounded, chat_of, open_batch_requests
from hpcserve.policy.scaling.hold import Hold
from hpcserve.policy.scaling.target import Target

#: Kubernetes' default downscale stabilisation, s
_WINDOW_S = 300.0


@final
class QueueLengthScaler:
    """Knows queues, no deadlines."""

    def __init__(self, settings: Scaling) -> None:
        """Take the `[scaling]` section."""
        self._settings = settings
        self._hold = Hold()

    def targets(self, fleet: Fleet, now: datetime) -> tuple[Target, ...]:
        """Return one MIXED target a model."""
        return tuple(self._target(model, fleet, now) for model in fleet.models.values())

    def _target(self, model: Model, fleet: Fleet, now: datetime) -> Target:
        chat = chat_of(fleet, model, self._settings.demand_memory_s, now)
        batch = open_batch_requests(fleet, model)
        wish = bounded(ceil((chat.in_flight + batch) / model.max_num_seqs), model)
        return Target(
            model=model.name,
            role=Role.MIXED,
            count=self._hold.highest(model.name, wish, _WINDOW_S, now),
            reason=f"{chat.in_flight} interactive and {batch} batch requests are open",
            release_now=True,
        )
