"""Whether a model may be tried again after faults. Pure.

Only faults count (EndReason.is_fault): walltime, preemption and scale-in are expected ends and
neither count nor reset. A streak of faults begins anew behind an instance that became READY and
did not end by a fault, and behind an operator's reset. An instance that is still ending by a fault
counts already: its replacement waits too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from hpcserve.config import Controller
from hpcserve.domain.fleet import Fleet
from hpcserve.domain.instance import Instance


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What back-off says of one model."""

    faults: int
    #: not before; None: at once
    retry_at: datetime | None
    #: an operator must look at it first
    given_up: bool
    #: the sentence that status shows; empty when all is well
    reason: str


def verdict(model: str, fleet: Fleet, settings: Controller, now: datetime) -> Verdict:
    """Return whether and when *model* may have another instance."""
    streak = _streak(model, fleet)
    if not streak:
        return Verdict(faults=0, retry_at=None, given_up=False, reason="")
    last, faults = streak[0], len(streak)
    what = f"{model}: instance {last.id} ended {last.end_reason or last.ending}: " + (
        last.message or last.job_state
    )
    if faults >= settings.failures_max:
        return Verdict(
            faults=faults,
            retry_at=None,
            given_up=True,
            reason=f"given up after {faults} failures in a row; mend the cause, then "
            f"`hpcserve admin model retry {model}`. {what}",
        )
    pause_s = min(settings.backoff_first_s * 2 ** (faults - 1), settings.backoff_max_s)
    retry_at = (last.ended_at or now) + timedelta(seconds=pause_s)
    if retry_at <= now:
        return Verdict(faults=faults, retry_at=None, given_up=False, reason=what)
    return Verdict(
        faults=faults,
        retry_at=retry_at,
        given_up=False,
        reason=f"tried again in {(retry_at - now).total_seconds():.0f} s after {faults} "
        f"failure{'s' if faults > 1 else ''}. {what}",
    )


def _streak(model: str, fleet: Fleet) -> list[Instance]:
    """Return the faults in a row, newest first."""
    fresh_after = fleet.forgiven_at.get(model)
    mine = [instance for instance in fleet.instances if instance.model == model]
    streak = [i for i in reversed(mine) if i.ending is not None and i.ending.is_fault]
    ready = [i.ready_at for i in mine if i.ready_at is not None and i not in streak]
    if ready:
        fresh_after = max([*ready, *([fresh_after] if fresh_after else [])])
    for ended in fleet.ended:
        if ended.model != model or ended.end_reason is None or ended.ended_at is None:
            continue
        if fresh_after is not None and ended.ended_at <= fresh_after:
            break
        if ended.end_reason.is_fault:
            streak.append(ended)
        elif ended.ready_at is not None:
            break
    return streak


def verdicts(fleet: Fleet, settings: Controller, now: datetime) -> Mapping[str, Verdict]:
    """Return the verdict on every model of the catalog."""
    return {model: verdict(model, fleet, settings, now) for model in fleet.models}
