"""What a scaling policy answers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from hpcserve.domain.fleet import Fleet
from hpcserve.domain.instance import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """How many instances of one model and role should serve, and why."""

    model: str
    role: Role
    count: int
    reason: str
    #: a successor is asked for so long before an end, s; None: `[scaling] handover_s`
    lead_s: float | None = None
    #: surplus is released at once, busy or not: the policy has waited long enough itself
    release_now: bool = False
    #: time limit of new ones, and what the scheduler may shorten it to; None: the catalog's
    time_limit_s: int | None = None
    time_min_s: int | None = None
    #: limits of those asked for together differ, so that they do not all end together
    staggered: bool = False


class Scaler(Protocol):
    """A scaling policy."""

    def targets(self, fleet: Fleet, now: datetime) -> tuple[Target, ...]:
        """Return a target for each model and role that it cares about, in a fixed order."""
        ...
