"""Scales each model to what is asked of it now: `ceil(in flight / max_num_seqs)`, and its backlog.

A model that somebody asked for within `demand_memory_s`, or that has open batch requests, keeps at
least one instance; a backlog adds one for each `batch_requests_per_instance`. All instances are
MIXED. The bounds of the catalog hold. It knows nothing of deadlines or of queue wait.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from math import ceil
from typing import final

from hpcserve.config import Scaling
from hpcserve.domain.fleet import Fleet
from hpcserve.domain.instance import Role
from hpcserve.domain.model import Model
from hpcserve.policy.scaling.target import Target


@final
class DemandScaler:
    """The simplest policy that works for a small site."""

    def __init__(self, settings: Scaling) -> None:
        """Take the `[scaling]` section."""
        self._settings = settings

    def targets(self, fleet: Fleet, now: datetime) -> tuple[Target, ...]:
        """Return one MIXED target for each model of the catalog."""
        return tuple(self._target(model, fleet, now) for model in fleet.models.values())

    def _target(self, model: Model, fleet: Fleet, now: datetime) -> Target:
        wanted, reason = model.min_instances, f"the catalog keeps {model.min_instances}"
        demand = fleet.demand.get(model.name)
        if demand is not None:
            in_flight = demand.running + demand.waiting
            recent = now - demand.asked_at < timedelta(seconds=self._settings.demand_memory_s)
            chat = max(ceil(in_flight / model.max_num_seqs), 1 if in_flight or recent else 0)
            if chat > wanted:
                wanted = chat
                ago_s = (now - demand.asked_at).total_seconds()
                reason = (
                    f"{in_flight} interactive requests in flight"
                    if in_flight
                    else f"somebody asked for it {ago_s:.0f} s ago"
                )
        open_requests = sum(
            backlog.waiting + backlog.leased
            for backlog in fleet.backlog
            if backlog.model == model.name
        )
        batch = ceil(open_requests / self._settings.batch_requests_per_instance)
        if batch > wanted:
            wanted, reason = batch, f"{open_requests} batch requests are open"
        if wanted > model.max_instances:
            wanted = model.max_instances
            reason += f"; the catalog allows {wanted}"
        return Target(model=model.name, role=Role.MIXED, count=wanted, reason=reason)
