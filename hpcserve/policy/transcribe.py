"""Turns what the scheduler says into facts about instances. Pure.

The evidence rule is kept here: nothing is concluded from a scheduler that did not answer, and a job
that is merely missing from its answer counts as gone only when accounting says so, when we asked
for its end, or when it stays missing for `vanish_s` while its agent is silent too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from hpcserve.config import Controller
from hpcserve.domain.instance import Instance, InstanceEvent, InstanceState
from hpcserve.domain.job import EndReason, JobPhase, JobsView, JobView
from hpcserve.domain.lifecycle import Transition
from hpcserve.domain.plan import Record

#: one step of an instance: itself afterwards, and the lines for its story
Step = tuple[Instance, tuple[Transition, ...]]


def transcribe(
    instances: tuple[Instance, ...],
    jobs: JobsView | None,
    accounted: Mapping[str, JobView],
    settings: Controller,
    now: datetime,
) -> tuple[Record, ...]:
    """Return the instances that the scheduler's answer changes."""
    if jobs is None:
        return ()
    records = []
    for instance in instances:
        job = jobs.jobs.get(instance.token) or accounted.get(instance.token)
        after, transitions = (
            _missing(instance, jobs.asked_at, settings, now)
            if job is None
            else _seen(instance, job, now)
        )
        if after is not instance and after != instance:
            records.append(Record(instance=after, transitions=transitions))
    return tuple(records)


def _seen(instance: Instance, job: JobView, now: datetime) -> Step:
    known = _renewed(instance, job, now)
    where = f"job {job.job_id} on {job.partition or 'this machine'}"
    match job.phase:
        case JobPhase.PENDING:
            if instance.state is not InstanceState.REQUESTED:
                return known, ()
            return _one(
                known.on(
                    InstanceEvent.SUBMITTED,
                    at=now,
                    reason=f"found again as {where} by its token",
                    submitted_at=now,
                )
            )
        case JobPhase.HELD:
            if instance.state not in (InstanceState.REQUESTED, InstanceState.QUEUED):
                return known, ()
            return _one(
                known.on(
                    InstanceEvent.STARTED,
                    at=now,
                    reason=f"{where} runs on {', '.join(job.nodes) or 'its node'}",
                    submitted_at=known.submitted_at or known.started_at,
                )
            )
        case JobPhase.GONE:
            end_reason = why_gone(instance, job)
            return _one(
                known.on(
                    InstanceEvent.GONE,
                    at=now,
                    reason=f"{where} is gone: Slurm says {job.state}; {end_reason}",
                    detail={"exit_code": job.exit_code},
                    end_reason=end_reason,
                    ended_at=now,
                )
            )


def _renewed(instance: Instance, job: JobView, now: datetime) -> Instance:
    """Return the instance with the scheduler's words, itself when they are the same."""
    words: dict[str, object] = {
        "job_id": job.job_id,
        "job_state": job.state,
        "job_reason": job.reason,
        "partition": job.partition or instance.partition,
        "nodes": job.nodes or instance.nodes,
        "job_missing_at": None,
        "expected_start_at": job.start_at if job.phase is JobPhase.PENDING else None,
        "ends_at": job.end_at or instance.ends_at,
    }
    if job.phase is JobPhase.HELD and instance.started_at is None:
        # the agent's hello may come before the scheduler's word that the job runs
        words["started_at"] = job.start_at or now
    # most jobs say nothing new, and a fleet may have ten thousand
    if all(getattr(instance, name) == word for name, word in words.items()):
        return instance
    return replace(instance, **words)  # type: ignore[arg-type]  # fields by name


def _missing(instance: Instance, asked_at: datetime, settings: Controller, now: datetime) -> Step:
    """Conclude what may be concluded from a job that the scheduler does not list."""
    if instance.state is InstanceState.REQUESTED:
        return _never_submitted(instance, asked_at, settings, now)
    if instance.state is InstanceState.STOPPING:
        return _gone(instance, "the scheduler no longer lists its job", now)
    # squeue may have been asked before sbatch was
    if instance.submitted_at is not None and asked_at < instance.submitted_at:
        return instance, ()
    if instance.job_missing_at is None:
        return replace(instance, job_missing_at=now), ()
    silent_since = max(instance.job_missing_at, instance.heard_at or instance.job_missing_at)
    if now - silent_since < timedelta(seconds=settings.vanish_s):
        return instance, ()
    why = f"neither squeue nor accounting has known its job for {settings.vanish_s:.0f} s"
    return _gone(instance, why, now)


def _never_submitted(
    instance: Instance, asked_at: datetime, settings: Controller, now: datetime
) -> Step:
    if asked_at - instance.requested_at < timedelta(seconds=settings.intent_grace_s):
        return instance, ()
    return _one(
        instance.on(
            InstanceEvent.REJECTED,
            at=now,
            reason=f"no job carries its token {settings.intent_grace_s:.0f} s after the intent",
            end_reason=instance.ending or EndReason.LOST,
            ended_at=now,
        )
    )


def _gone(instance: Instance, reason: str, now: datetime) -> Step:
    return _one(
        instance.on(
            InstanceEvent.GONE,
            at=now,
            reason=reason,
            end_reason=instance.ending or EndReason.LOST,
            ended_at=now,
        )
    )


def why_gone(instance: Instance, job: JobView) -> EndReason:
    """Return the end reason: what we or the agent said first, then what the scheduler says.

    A job that exits 0 without a word (its last message was lost, or Slurm 22.05 records a preempted
    job that ended within its grace as COMPLETED) did as it was told: DRAINED. The agent, who sees
    only a signal, takes a `scancel` by hand for preemption; the scheduler knows better.
    """
    is_guess = instance.ending is EndReason.PREEMPTED and instance.stop_asked_at is None
    if is_guess and job.end_reason is EndReason.CANCELLED_OUTSIDE:
        return job.end_reason
    if instance.ending is not None:
        return instance.ending
    if job.end_reason is EndReason.CRASHED and instance.ready_at is None:
        return EndReason.LOAD_FAILED
    return job.end_reason or EndReason.DRAINED


def _one(step: tuple[Instance, Transition]) -> Step:
    after, transition = step
    return after, (transition,)
