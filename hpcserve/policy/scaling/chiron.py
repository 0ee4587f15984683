"""Chiron as published (arXiv 2501.08090): hierarchical backpressure that knows no Slurm.

Interactive: desired = max(1, ceil(busy / Theta)) with Theta = 1/3, and `busy` the instances that
packed interactive requests fill. Batch: while a group in deadline order is expected to wait longer
than is left to its deadline (W of `groups`, z = 1.65), one batch instance more; when the batch
queue is empty, all batch instances go. Load time and queue wait are not in it, nor is walltime.
Role BATCH, so that a site's opportunistic partition serves it too.
"""

from __future__ import annotations

from datetime import datetime
from math import ceil
from typing import final

from hpcserve.config import Scaling
from hpcserve.domain.fleet import Fleet
from hpcserve.domain.instance import InstanceState, Role
from hpcserve.domain.model import Model
from hpcserve.policy.scaling.chat import bounded, chat_of
from hpcserve.policy.scaling.groups import groups_of, waiting_s
from hpcserve.policy.scaling.rates import Rates
from hpcserve.policy.scaling.target import Target

THETA = 1 / 3
_Z = 1.65


@final
class ChironScaler:
    """The baseline that ours is built on."""

    def __init__(self, settings: Scaling) -> None:
        """Take the `[scaling]` section."""
        self._settings = settings
        self._rates = Rates()
        self._batch: dict[str, int] = {}

    def targets(self, fleet: Fleet, now: datetime) -> tuple[Target, ...]:
        """Return a MIXED and a BATCH target a model."""
        self._rates.observe(fleet, now)
        return tuple(
            target for model in fleet.models.values() for target in self._targets(model, fleet, now)
        )

    def _targets(self, model: Model, fleet: Fleet, now: datetime) -> tuple[Target, Target]:
        chat = chat_of(fleet, model, self._settings.demand_memory_s, now)
        busy = ceil(chat.in_flight / model.max_num_seqs)
        mixed = bounded(max(1, ceil(busy / THETA)), model)
        batch, why = self._batch_count(model, fleet, model.max_instances - mixed, now)
        return (
            Target(
                model=model.name,
                role=Role.MIXED,
                count=mixed,
                reason=f"{busy} instances are busy with chat, and Theta is {THETA:.2f}",
                release_now=True,
            ),
            Target(model=model.name, role=Role.BATCH, count=batch, reason=why, release_now=True),
        )

    def _batch_count(
        self, model: Model, fleet: Fleet, allowed: int, now: datetime
    ) -> tuple[int, str]:
        groups = groups_of(fleet.backlog, model.name)
        if not groups:
            self._batch[model.name] = 0
            return 0, "the batch queue is empty"
        rate = self._rates.per_s(model.name, self._settings.batch_rate_first)
        mixed = sum(
            1
            for i in fleet.instances
            if i.model == model.name and i.role is Role.MIXED and i.state is InstanceState.READY
        )
        count = min(self._batch.get(model.name, 0), allowed)
        late = [0]
        while True:
            late = [
                group.open_before
                for group in groups
                if waiting_s(group.open_before, rate * (mixed + count), _Z)
                > (group.deadline_at - now).total_seconds()
            ]
            if not late or count >= allowed:
                break
            count += 1
        self._batch[model.name] = count
        said = f"{len(late)} of {len(groups)} request groups would be late"
        return count, f"{said} with {mixed} mixed and {count} batch instances"
