"""What is kept of estimates: a batch while it is watched, its note, its story, the score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from hpcserve.batching.pace import Pace
from hpcserve.domain.batch import Batch
from hpcserve.domain.instance import Instance
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.policy.estimate.cost import Cost, Prior
from hpcserve.policy.estimate.finish import Capacity, Finish
from hpcserve.policy.estimate.history import History, Stretch

#: the event of an estimate; `detail` has `stage`, `p50_at` and `p90_at`
ESTIMATED = "estimated"
#: the event of its comparison with the end
CHECKED = "estimate_checked"
#: the event that the scaling policy wants other numbers of instances than before
SCALED = "scaled"
#: such events in the story of one batch
DECISIONS_MAX = 100
#: estimates that the story keeps: the first one, and the first by own results
FIRST, LEARNED = "first", "learned"


@dataclass(slots=True)
class Watched:
    """A batch as it was at the last look, and what has been learned of it."""

    batch: Batch
    at: datetime
    history: History = field(default_factory=History)
    pace: Pace = field(default_factory=Pace)
    #: p90 by stage, as the story has them
    said: dict[str, datetime] = field(default_factory=dict)
    #: what a line was to cost by the first own results, and what they were
    promise_s: float | None = None
    beginning: Stretch = field(default_factory=Stretch)
    #: what the scaling policy last wanted for its model, why, and how often that has changed
    wanted: tuple[tuple[str, int], ...] = ()
    wanted_because: str = ""
    decisions: int = 0

    def learn(self, prior: Prior) -> Prior:
        """Return what the next batch of this model is to believe."""
        total = self.history.total
        lines = total.lines - self.beginning.lines
        rest_s = (total.instance_s - self.beginning.instance_s) / lines if lines else 0.0
        return prior.learn(total.cost_s, self.promise_s, rest_s or None)


def finished(batch: Batch) -> int:
    """Return how many lines of a batch have their result."""
    return batch.counts.completed + batch.counts.failed


def shape(
    watched: Watched,
    done: Finish,
    live: Sequence[Instance],
    *,
    own_s: float,
    now: datetime,
    reason: str,
) -> dict[str, object]:
    """Return one estimate as gateways hand it out."""
    batch, total = watched.batch, watched.history.total
    gpus = max((i.gpus for i in live if i.model == batch.model), default=0)
    p90_at = now + timedelta(seconds=done.p90_s)
    return {
        "p50_at": (now + timedelta(seconds=done.p50_s)).isoformat(),
        "p90_at": p90_at.isoformat(),
        "in_time": p90_at <= batch.deadline_at,
        "instance_hours": own_s / 3600,
        "gpus_per_instance": gpus,
        "lines_per_s": watched.pace.lines_per_s,
        "output_tokens_per_s": watched.pace.tokens_per_s,
        "output_tokens_per_line": total.output_tokens / total.lines if total.lines else None,
        "reason": reason,
    }


def reason_of(batch: Batch, history: History, each: Cost, room: Capacity, *, before: int) -> str:
    """Return what an estimate rests on."""
    total = history.total
    learned = f"{total.lines} own results" if total.lines else "earlier batches of its model"
    if room.serving:
        serving = f"{room.serving} serving"
    else:
        soon = min(room.coming, key=lambda coming: coming.p50_s)
        serving = f"the first expected to serve in {soon.p50_s:.0f} s (p90 {soon.p90_s:.0f} s)"
    queue = f" behind {before} that are due earlier" if before else ""
    return (
        f"{batch.counts.open} requests are open{queue}, each costs {each.p50_s:.3g} s of an "
        f"instance (p90 {each.p90_s:.3g} s, by {learned}), with {serving}"
    )


def estimated(batch: Batch, done: Finish, stage: str, reason: str, now: datetime) -> Transition:
    """Return the line for the story that an estimate was made."""
    p50_at, p90_at = (now + timedelta(seconds=s) for s in (done.p50_s, done.p90_s))
    late = "" if p90_at <= batch.deadline_at else ", which is too late"
    return about(
        batch.id,
        ESTIMATED,
        f"done in {done.p50_s:.0f} s, with certainty 0.9 in {done.p90_s:.0f} s{late}: {reason}",
        now,
        {"stage": stage, "p50_at": p50_at.isoformat(), "p90_at": p90_at.isoformat()},
    )


def checked(
    batch_id: str, said: Mapping[str, datetime], end: datetime, now: datetime
) -> Transition:
    """Return the line for the story that says how good the estimates were."""
    off = {stage: (end - p90_at).total_seconds() for stage, p90_at in said.items()}
    words = [
        f"{abs(late_s):.0f} s {'after' if late_s > 0 else 'before'} the {stage} p90"
        for stage, late_s in off.items()
    ]
    reason = f"its last result came {' and '.join(words)}"
    return about(batch_id, CHECKED, reason, now, {"late_s": off})


def about(
    batch_id: str,
    event: str,
    reason: str,
    now: datetime,
    detail: Mapping[str, object] | None = None,
) -> Transition:
    """Return a line for the story of a batch that changes nothing."""
    return Transition(
        subject=Subject.BATCH,
        subject_id=batch_id,
        at=now,
        event=event,
        from_state=None,
        to_state=None,
        reason=reason,
        detail=detail or {},
    )


def score(note: Mapping[str, object] | None) -> dict[str, tuple[int, int]]:
    """Return, by stage, how many ends were covered by the p90, of how many batches."""
    return {
        stage: (int(counts["covered"]), int(counts["batches"]))
        for stage, counts in (note or {}).items()
        if isinstance(counts, Mapping)
    }


def counted(
    note: Mapping[str, object] | None, said: Mapping[str, datetime], end: datetime
) -> dict[str, object]:
    """Return the score as a note, with one more batch."""
    known = score(note)
    for stage, p90_at in said.items():
        covered, batches = known.get(stage, (0, 0))
        known[stage] = covered + (end <= p90_at), batches + 1
    return {
        stage: {"covered": covered, "batches": batches}
        for stage, (covered, batches) in known.items()
    }


def priors_of(note: Mapping[str, object] | None) -> dict[str, Prior]:
    """Return the priors by model, as the note has them."""
    return {
        model: Prior(**{name: float(number) for name, number in value.items()})
        for model, value in (note or {}).items()
        if isinstance(value, Mapping)
    }
