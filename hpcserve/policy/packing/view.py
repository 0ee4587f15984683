"""What a packer sees, and what it may answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from hpcserve.domain.batch import Backlog


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """An instance asks for work."""

    instance_id: str
    model: str
    #: requests that it can begin at once
    limit: int
    #: end of its allocation; None: it has none
    ends_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingView:
    """The open work at one instant, and who asks."""

    ask: Ask
    #: every batch in progress, whatever its model
    backlog: tuple[Backlog, ...]
    #: batch id -> how long one of its requests lasts (p95), s; missing: not measured yet
    request_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingSettings:
    """The packer's part of the configuration."""

    deadline_bucket_s: int
    #: for a batch that has not been measured
    request_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """Lease up to `limit` requests of this batch."""

    batch_id: str
    limit: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """There is no work for who asked."""

    reason: str
