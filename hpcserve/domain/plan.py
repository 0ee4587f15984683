"""A Plan: what a decision asks for. Every action carries a reason that a user can read."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.domain.instance import Instance, Role
from hpcserve.domain.job import EndReason
from hpcserve.domain.lifecycle import Transition


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Request one more instance of a model."""

    model: str
    role: Role
    reason: str
    #: in place of the catalog's; ends are staggered and backfill holes filled by it
    time_limit_s: int | None = None
    #: the scheduler may shorten the limit down to this; None forbids it
    time_min_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Write facts down: the instance as it is now, and the lines for its story (maybe none)."""

    instance: Instance
    transitions: tuple[Transition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Let an instance finish what it has and then end."""

    instance: Instance
    ending: EndReason
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End an instance now: cancel its job."""

    instance: Instance
    ending: EndReason
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Cancel a job that no live instance of the ledger owns."""

    job_id: str
    reason: str


Action = Submit | Record | Drain | Stop | Cancel
Plan = tuple[Action, ...]
