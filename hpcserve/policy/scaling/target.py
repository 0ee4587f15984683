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


class Scaler(Protocol):
    """A scaling policy."""

    def targets(self, fleet: Fleet, now: datetime) -> tuple[Target, ...]:
        """Return a target for each model and role that it cares about, in a fixed order."""
        ...
