"""What open batches need next: a pure function of what the ledger says and of the time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from hpcserve.domain.batch import Batch, BatchState


class StepKind(StrEnum):
    """What the worker can do to a batch."""

    VALIDATE = "validate"
    #: its user cancelled it before it was accepted
    ABANDON = "abandon"
    CLOSE_WINDOW = "close_window"
    #: every line is terminal
    SETTLE = "settle"
    #: write the result files
    FINALISE = "finalise"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing to do, and why."""

    kind: StepKind
    batch_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """The open batches at one instant."""

    batches: tuple[Batch, ...]
    #: batches that a task works on, or that pause after a failure
    busy: frozenset[str]


def decide(view: Open, now: datetime) -> tuple[Step, ...]:
    """Return what is due, oldest batch first."""
    due = (_step(batch, now) for batch in view.batches if batch.id not in view.busy)
    return tuple(step for step in due if step is not None)


def _step(batch: Batch, now: datetime) -> Step | None:
    due: tuple[StepKind, str] | None = None
    match batch.state:
        case BatchState.VALIDATING:
            due = StepKind.VALIDATE, "its file is new"
            if now >= batch.deadline_at:
                due = StepKind.CLOSE_WINDOW, f"{_late(batch)}, and its file was never validated"
        case BatchState.IN_PROGRESS:
            if batch.counts.open == 0:
                due = StepKind.SETTLE, "every request has its result"
            elif now >= batch.deadline_at:
                due = StepKind.CLOSE_WINDOW, f"{_late(batch)}; {batch.counts.open} are not done"
        case BatchState.FINALIZING:
            due = StepKind.FINALISE, "its results are complete"
        case BatchState.CANCELLING:
            due = StepKind.ABANDON, "cancelled before it was accepted"
            if batch.model:
                due = StepKind.FINALISE, "cancelled"
        case BatchState.COMPLETED | BatchState.FAILED | BatchState.EXPIRED | BatchState.CANCELLED:
            pass
    return Step(kind=due[0], batch_id=batch.id, reason=due[1]) if due else None


def _late(batch: Batch) -> str:
    return f"its window of {batch.completion_window} is over"
