"""Interactive load of one model, as far as the gateways have said."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from hpcserve.domain.fleet import Fleet
from hpcserve.domain.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """What people want now."""

    running: int = 0
    waiting: int = 0
    #: somebody asked a short time ago
    recent: bool = False

    @property
    def in_flight(self) -> int:
        """Requests that are served or wait."""
        return self.running + self.waiting


def chat_of(fleet: Fleet, model: Model, memory_s: float, now: datetime) -> Chat:
    """Return the load; what nobody reported counts as none, so it never releases by itself."""
    demand = fleet.demand.get(model.name)
    if demand is None:
        return Chat()
    recent = now - demand.asked_at < timedelta(seconds=memory_s)
    return Chat(running=demand.running, waiting=demand.waiting, recent=recent)


def open_batch_requests(fleet: Fleet, model: Model) -> int:
    """Return how many batch requests of a model are not done."""
    return sum(b.waiting + b.leased for b in fleet.backlog if b.model == model.name)


def bounded(count: int, model: Model) -> int:
    """Return *count* within what the catalog allows."""
    return max(model.min_instances, min(count, model.max_instances))
