"""What a ledger in memory holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from hpcserve.domain.batch import (
    Batch,
    InputFile,
    RequestCounts,
    RequestState,
    TokenUsage,
)
from hpcserve.domain.fleet import Demand
from hpcserve.domain.instance import Instance
from hpcserve.domain.key import ApiKey
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.ports.ledger import Leadership


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a batch."""

    line_no: int
    offset: int
    length: int
    state: RequestState = RequestState.WAITING
    attempts: int = 0
    lease_id: int | None = None
    #: segment, offset and length of its result; segment -1: no bytes
    result: tuple[int, int, int] = (-1, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldLease:
    """One lease."""

    id: int
    batch_seq: int
    instance_id: str
    expires_at: datetime
    #: lines granted; it holds those that are still LEASED under its id
    line_nos: tuple[int, ...]
    open_lines: int
    lapsed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What the ledger itself keeps of a batch."""

    counts: RequestCounts = field(default_factory=RequestCounts)
    usage: TokenUsage = field(default_factory=TokenUsage)
    first_result_at: datetime | None = None
    validated_lines: int = 0
    validated_bytes: int = 0
    #: all line numbers in order; those before `fresh` have been leased once
    order: tuple[int, ...] = ()
    fresh: int = 0
    #: line numbers handed back, in order
    handed_back: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Shelves:
    """All tables; only a Journal writes to them."""

    live: dict[str, Instance] = field(default_factory=dict)
    ended: dict[str, Instance] = field(default_factory=dict)
    #: (ended_at, id), sorted
    ended_order: list[tuple[datetime, str]] = field(default_factory=list)
    tokens: dict[str, str] = field(default_factory=dict)
    stories: dict[tuple[Subject, str], list[Transition]] = field(default_factory=dict)
    #: event -> subject id -> when last
    last: dict[str, dict[str, datetime]] = field(default_factory=dict)
    files: dict[str, InputFile] = field(default_factory=dict)
    batches: dict[str, Batch] = field(default_factory=dict)
    tallies: dict[int, Tally] = field(default_factory=dict)
    lines: dict[int, dict[int, Line]] = field(default_factory=dict)
    leases: dict[int, HeldLease] = field(default_factory=dict)
    #: those of `leases` that hold lines
    open_leases: dict[int, HeldLease] = field(default_factory=dict)
    segments: dict[int, str] = field(default_factory=dict)
    keys: dict[str, ApiKey] = field(default_factory=dict)
    demand: dict[tuple[str, str], Demand] = field(default_factory=dict)
    leadership: dict[int, Leadership] = field(default_factory=dict)
    notes: dict[str, Mapping[str, object]] = field(default_factory=dict)
