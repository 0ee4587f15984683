"""Batch, BatchRequest, input files and leases: work with a deadline, done exactly once.

A Batch is OpenAI's, with its eight words. A BatchRequest is one line of its input file. Rules:

- Payload bytes stay in files. The ledger holds offsets and lengths into the immutable input file
  and into result segments, and a state for each line.
- Work is done under a Lease. A result counts only while its lease is live (`token` fences late
  writers). A *released* lease costs its lines no attempt; a *lapsed* one costs one.
- Each line ends with exactly one result: in the output file (COMPLETED), or in the error file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from hpcserve.domain.lifecycle import Subject, Table, Transition


class BatchState(StrEnum):
    """OpenAI's words, unchanged."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class BatchEvent(StrEnum):
    """What can happen to a batch."""

    ACCEPTED = "accepted"
    INVALID = "invalid"
    CANCEL = "cancel"
    WINDOW_CLOSED = "window_closed"
    #: every request is terminal
    SETTLED = "settled"
    #: the result files are complete
    WRITTEN = "written"
    #: complete, with lines that the window left undone
    WRITTEN_LATE = "written_late"


_B = BatchState
_E = BatchEvent

BATCH = Table[BatchState, BatchEvent](
    "batch",
    {
        _B.VALIDATING: {
            _E.ACCEPTED: _B.IN_PROGRESS,
            _E.INVALID: _B.FAILED,
            _E.CANCEL: _B.CANCELLING,
            _E.WINDOW_CLOSED: _B.FINALIZING,
        },
        _B.IN_PROGRESS: {
            _E.SETTLED: _B.FINALIZING,
            _E.WINDOW_CLOSED: _B.FINALIZING,
            _E.CANCEL: _B.CANCELLING,
        },
        _B.FINALIZING: {
            _E.WRITTEN: _B.COMPLETED,
            _E.WRITTEN_LATE: _B.EXPIRED,
            _E.CANCEL: _B.FINALIZING,
        },
        _B.CANCELLING: {
            _E.WRITTEN: _B.CANCELLED,
            # the validator may still be reading when the user cancels
            _E.ACCEPTED: _B.CANCELLING,
            _E.INVALID: _B.CANCELLED,
            _E.CANCEL: _B.CANCELLING,
        },
        _B.COMPLETED: {},
        _B.FAILED: {},
        _B.EXPIRED: {},
        _B.CANCELLED: {},
    },
)


class RequestState(StrEnum):
    """Where one line of a batch is."""

    WAITING = "waiting"
    LEASED = "leased"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class RequestEvent(StrEnum):
    """What can happen to one line."""

    LEASED = "leased"
    ANSWERED = "answered"
    #: not retryable: the engine rejects the body
    REFUSED = "refused"
    #: attempts used up
    EXHAUSTED = "exhausted"
    #: handed back: drained, preempted, shed; the attempt does not count
    RELEASED = "released"
    #: its lease ran out without a word; the attempt counts
    LAPSED = "lapsed"
    CANCELLED = "cancelled"
    WINDOW_CLOSED = "window_closed"


_R = RequestState
_Q = RequestEvent

BATCH_REQUEST = Table[RequestState, RequestEvent](
    "batch request",
    {
        _R.WAITING: {
            _Q.LEASED: _R.LEASED,
            _Q.CANCELLED: _R.CANCELLED,
            _Q.WINDOW_CLOSED: _R.EXPIRED,
            _Q.EXHAUSTED: _R.FAILED,
        },
        _R.LEASED: {
            _Q.ANSWERED: _R.COMPLETED,
            _Q.REFUSED: _R.FAILED,
            _Q.EXHAUSTED: _R.FAILED,
            _Q.RELEASED: _R.WAITING,
            _Q.LAPSED: _R.WAITING,
            _Q.CANCELLED: _R.CANCELLED,
            _Q.WINDOW_CLOSED: _R.EXPIRED,
        },
        _R.COMPLETED: {},
        _R.FAILED: {},
        _R.CANCELLED: {},
        _R.EXPIRED: {},
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One file of the Files API: uploaded, registered by path, or written by us."""

    id: str
    owner: str
    filename: str
    #: `batch` or `batch_output`
    purpose: str
    size_bytes: int
    created_at: datetime
    expires_at: datetime | None
    #: absolute path on the shared file system
    path: str
    #: we wrote it and may delete it; False for a file that its owner registered by path
    is_ours: bool
    #: modification time when registered, ns: the input must not change under us
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LineError:
    """One entry of `batch.errors.data`."""

    code: str
    message: str
    #: counted from 1; None when the whole file is meant
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCounts:
    """How many lines of a batch are in which state."""

    total: int = 0
    waiting: int = 0
    leased: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0

    @property
    def open(self) -> int:
        """Lines that still have to be done."""
        return self.waiting + self.leased


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """Tokens of the finished lines."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch."""

    id: str
    #: small integer of the ledger; rows of requests carry it in place of the id
    seq: int = 0
    owner: str
    model: str
    endpoint: str
    input_file_id: str
    #: as the client wrote it (`24h`)
    completion_window: str
    state: BatchState
    created_at: datetime
    #: created_at + completion_window
    deadline_at: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)
    idempotency_key: str | None = None
    #: lines read so far while VALIDATING, and the file's size: progress for people
    validated_lines: int = 0
    validated_bytes: int = 0
    errors: tuple[LineError, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: datetime | None = None
    finalizing_at: datetime | None = None
    completed_at: datetime | None = None
    failed_at: datetime | None = None
    expired_at: datetime | None = None
    cancelling_at: datetime | None = None
    cancelled_at: datetime | None = None
    #: when its first result was committed
    first_result_at: datetime | None = None
    #: kept exact by the ledger with every commit of results
    counts: RequestCounts = RequestCounts()
    usage: TokenUsage = TokenUsage()
    version: int = 0

    def on(
        self,
        event: BatchEvent,
        *,
        at: datetime,
        reason: str,
        **changes: object,
    ) -> tuple[Batch, Transition]:
        """Return the batch after *event* and the line for its story."""
        to = BATCH.next(self.id, self.state, event)
        transition = Transition(
            subject=Subject.BATCH,
            subject_id=self.id,
            at=at,
            event=event,
            from_state=self.state,
            to_state=to,
            reason=reason,
        )
        stamp = f"{to}_at"
        if to is not self.state and stamp in self.__slots__:
            changes.setdefault(stamp, at)
        return replace(self, state=to, **changes), transition  # type: ignore[arg-type]  # fields by name

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in BATCH.terminal


class NewRequest(NamedTuple):
    """One validated line, as intake hands it to the ledger; a tuple, since millions are made."""

    line_no: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedRequest:
    """One line under a lease: where its body lies."""

    batch_id: str
    batch_seq: int
    line_no: int
    offset: int
    length: int
    #: attempts used up before this one
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Exclusive, expiring right of one instance to work on some requests."""

    #: the fencing number: unique, growing
    id: int
    instance_id: str
    batch_id: str
    batch_seq: int
    granted_at: datetime
    expires_at: datetime
    requests: tuple[LeasedRequest, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome of one line, already written to a result segment."""

    line_no: int
    #: ANSWERED, REFUSED or EXHAUSTED
    event: RequestEvent
    segment: int
    offset: int
    length: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """Open work of one batch, as the packer and the scaler see it."""

    batch_id: str
    batch_seq: int
    owner: str
    model: str
    deadline_at: datetime
    created_at: datetime
    waiting: int
    leased: int
