"""The ledger: every noun that must survive a crash, behind transactions.

A transaction is a synchronous function of a Tx: `await ledger.transact(work)` runs `work(tx)` and
commits, or rolls back when it raises. It may run more than once (a conflict or a busy database is
retried, bounded), so it must have no effect but through its Tx. It never blocks the event loop.

Rules that every adapter keeps, and the contract suite checks:

- `save` compares `version` and raises ConflictError when the row has moved on (transact retries).
  So does `add` when there is a row with the same id or key.
- A transition given to `add` or `save` is stored as an event in the same transaction.
- Results are accepted only under a lease that has not lapsed: `settle` names the lines that it
  took. A lease whose time is over stays its holder's until `lapse` takes the lines back; only then
  is the holder fenced. So work that is done is not thrown away for a late heartbeat.
- `batches.get(...).counts` always equals a count of the request rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeVar

from hpcserve.domain.batch import (
    Backlog,
    Batch,
    InputFile,
    Lease,
    NewRequest,
    RequestState,
    Result,
)
from hpcserve.domain.fleet import Demand
from hpcserve.domain.instance import Instance
from hpcserve.domain.key import ApiKey
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.domain.load import EngineLoad, GpuLoad

T = TypeVar("T")


class InstanceStore(Protocol):
    """Instances."""

    def add(self, instance: Instance, transition: Transition) -> None:
        """Insert a new one, with the first line of its story."""
        ...

    def get(self, instance_id: str) -> Instance | None:
        """Return one."""
        ...

    def live(self) -> tuple[Instance, ...]:
        """Return all that are not ENDED, oldest first."""
        ...

    def ended(self, limit: int) -> tuple[Instance, ...]:
        """Return the most recently ended ones, newest first."""
        ...

    def save(self, instance: Instance, *transitions: Transition) -> None:
        """Update one, append its transitions; `version` must be the stored one.

        A heartbeat that came since the instance was read stays: `heard_at` and `busy_at` never go
        back, and `load` stays with the later `heard_at`.
        """
        ...

    def heard(
        self,
        instance_id: str,
        at: datetime,
        load: EngineLoad | None,
        *,
        busy: bool,
        gpu_load: tuple[GpuLoad, ...] = (),
    ) -> None:
        """Note a heartbeat: no transition, no version; ended instances stay as they are.

        None keeps the last reading of the load, which carries its own time.
        """
        ...


class EventStore(Protocol):
    """The stories."""

    def append(self, transition: Transition) -> None:
        """Add one line."""
        ...

    def story(self, subject: Subject, subject_id: str) -> tuple[Transition, ...]:
        """Return all lines of one id, in order."""
        ...

    def last(self, event: str) -> Mapping[str, datetime]:
        """Return when each subject id last had *event* (for operator's resets)."""
        ...


class FileStore(Protocol):
    """Rows of the Files API."""

    def add(self, file: InputFile) -> None:
        """Insert one."""
        ...

    def get(self, file_id: str) -> InputFile | None:
        """Return one."""
        ...

    def list(self, owner: str, *, purpose: str | None) -> tuple[InputFile, ...]:
        """Return one owner's files, newest first."""
        ...

    def delete(self, file_id: str) -> None:
        """Remove the row."""
        ...

    def expired(self, now: datetime, limit: int) -> tuple[InputFile, ...]:
        """Return files past their time."""
        ...


class BatchStore(Protocol):
    """Batches."""

    def add(self, batch: Batch, transition: Transition) -> Batch:
        """Insert one and return it with its `seq`."""
        ...

    def get(self, batch_id: str) -> Batch | None:
        """Return one, with exact counts."""
        ...

    def by_idempotency_key(self, owner: str, key: str) -> Batch | None:
        """Return the batch that this owner made with this key."""
        ...

    def list(self, owner: str | None, *, after: str | None, limit: int) -> tuple[Batch, ...]:
        """Return batches newest first, beginning behind *after*; None means all owners."""
        ...

    def open(self) -> tuple[Batch, ...]:
        """Return all that are not terminal, oldest first."""
        ...

    def save(self, batch: Batch, *transitions: Transition) -> None:
        """Update one but for what the ledger keeps itself.

        That is `counts`, `usage`, `first_result_at`, and the progress of its validation.
        """
        ...

    def progress(self, batch_id: str, *, lines: int, size_bytes: int) -> None:
        """Note how far validation has read."""
        ...

    def backlog(self) -> tuple[Backlog, ...]:
        """Return the open work of batches in progress, earliest deadline first."""
        ...


class RequestStore(Protocol):
    """Lines of batches; every method is a few set statements whatever the number of lines."""

    def add(self, batch_seq: int, requests: Iterable[NewRequest]) -> int:
        """Insert validated lines as WAITING, in bulk, and return how many."""
        ...

    def discard(self, batch_seq: int) -> None:
        """Remove all lines of a batch whose validation failed."""
        ...

    def lease(
        self, *, batch: Batch, instance_id: str, limit: int, now: datetime, ttl_s: float
    ) -> Lease | None:
        """Lease up to *limit* WAITING lines in input order; None when there is none."""
        ...

    def renew(self, instance_id: str, now: datetime, ttl_s: float) -> tuple[int, ...]:
        """Extend this instance's leases that still hold lines; return their ids."""
        ...

    def settle(
        self, *, lease_id: int, instance_id: str, results: Sequence[Result], now: datetime
    ) -> frozenset[int]:
        """Commit results of lines that this lease still holds; return the line numbers taken.

        Raises FencedError when the lease has lapsed or is another instance's. Lines that are
        settled, released or closed already are not taken; saying the same twice does no harm.
        """
        ...

    def release(self, *, lease_id: int, instance_id: str, line_nos: Sequence[int] | None) -> int:
        """Hand lines back (None: all that are left) without cost; return how many."""
        ...

    def lapse(self, now: datetime, *, instance_ids: Sequence[str] = ()) -> int:
        """Return to WAITING what expired leases, or leases of these ended instances, held.

        The attempt counts. Returns how many lines.
        """
        ...

    def lapsed_out(self, max_attempts: int, limit: int) -> tuple[tuple[int, int, int], ...]:
        """Return (batch_seq, line_no, attempts) of WAITING lines whose attempts are used up."""
        ...

    def close(
        self, batch_seq: int, state: RequestState, *, line_nos: Sequence[int] | None = None
    ) -> int:
        """Move open lines (WAITING and LEASED; all, or these) to CANCELLED, EXPIRED or FAILED."""
        ...

    def results(
        self, batch_seq: int, state: RequestState, *, after_line: int, limit: int
    ) -> tuple[tuple[int, int, int, int], ...]:
        """Return (line_no, segment, offset, length) in input order; segment -1: no bytes."""
        ...

    def inputs(self, batch_seq: int, line_nos: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
        """Return (line_no, offset, length) in the input file."""
        ...


class SegmentStore(Protocol):
    """Files that hold result bytes; a line's result is a slice of one."""

    def add(self, path: str) -> int:
        """Register a segment and return its number."""
        ...

    def paths(self, segments: Sequence[int]) -> Mapping[int, str]:
        """Return where segments lie."""
        ...


class KeyStore(Protocol):
    """API keys."""

    def add(self, key: ApiKey) -> None:
        """Insert one."""
        ...

    def by_digest(self, digest: str) -> ApiKey | None:
        """Return the key with this digest."""
        ...

    def list(self, owner: str | None) -> tuple[ApiKey, ...]:
        """Return keys, newest first."""
        ...

    def revoke(self, key_id: str, now: datetime) -> bool:
        """Revoke one; False when there is none."""
        ...


class DemandStore(Protocol):
    """Interactive demand as each gateway last reported it."""

    def report(self, gateway_id: str, demand: Sequence[Demand]) -> None:
        """Replace what this gateway said of these models."""
        ...

    def read(self, since: datetime) -> tuple[Demand, ...]:
        """Return demand summed over gateways; counts older than *since* count as zero.

        A count is as old as its `asked_at`, so a gateway reports `asked_at` as now while it has
        requests running or waiting.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Leadership:
    """A won or renewed leadership."""

    holder: str
    #: grows with each change of holder; every act of a leader is checked against it
    fence: int
    expires_at: datetime


class LeaderStore(Protocol):
    """Which controller leads."""

    def acquire(self, holder: str, now: datetime, ttl_s: float) -> Leadership | None:
        """Take or renew leadership; None while another's is live.

        A live leadership of the same holder is renewed; anything else is a new one, with the next
        fence.
        """
        ...

    def check(self, leadership: Leadership, now: datetime) -> None:
        """Raise FencedError unless it is still this leader's."""
        ...

    def resign(self, holder: str) -> None:
        """Give leadership up at once."""
        ...

    def current(self) -> Leadership | None:
        """Return the last leadership, live or not."""
        ...


class NoteStore(Protocol):
    """Small facts that processes tell one another (the scheduler's outage, partitions, site id)."""

    def put(self, name: str, value: Mapping[str, object]) -> None:
        """Write one JSON-able value."""
        ...

    def get(self, name: str) -> Mapping[str, object] | None:
        """Read one."""
        ...


class Tx(Protocol):
    """One transaction."""

    @property
    def instances(self) -> InstanceStore:
        """Instances."""
        ...

    @property
    def events(self) -> EventStore:
        """Their stories, and others."""
        ...

    @property
    def files(self) -> FileStore:
        """Files of the Files API."""
        ...

    @property
    def batches(self) -> BatchStore:
        """Batches."""
        ...

    @property
    def requests(self) -> RequestStore:
        """Lines of batches."""
        ...

    @property
    def segments(self) -> SegmentStore:
        """Where result bytes lie."""
        ...

    @property
    def keys(self) -> KeyStore:
        """API keys."""
        ...

    @property
    def demand(self) -> DemandStore:
        """Interactive demand."""
        ...

    @property
    def leader(self) -> LeaderStore:
        """Which controller leads."""
        ...

    @property
    def notes(self) -> NoteStore:
        """Small facts between processes."""
        ...


class Ledger(Protocol):
    """The ledger of a site."""

    async def transact(self, work: Callable[[Tx], T]) -> T:
        """Run *work* in one transaction; retry conflicts a bounded number of times.

        Raises ConflictError when they last, and BackendError (retryable) when the database stays
        away. A commit whose answer was lost is not retried: look whether it counts.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and threads."""
        ...
