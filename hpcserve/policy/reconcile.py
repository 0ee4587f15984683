"""Compares the fleet with its targets and says what to do. Pure, idempotent, order-independent.

In this order:

1. *Watch*: an agent that fell silent is UNREACHABLE; one that is silent far too long in a job that
   runs, one that never registered, and a stop that had no effect are ended.
2. *Orphans*: a job whose instance has ENDED in the ledger is cancelled.
3. *Scale*: too few that count towards a target: submit, unless back-off or the scheduler's silence
   forbids. Too many: first stop what does not serve yet, then drain what is idle for long enough
   (or, where the policy has waited itself, what ends first). One near its time limit is drained
   as soon as enough others serve.
4. *Budget*: no submission takes the GPUs held and waited for beyond `[scaling] gpus_max`.

Nothing destructive follows from missing evidence: without an answer of the scheduler only the watch
over agents runs, and it too holds still while nobody listens to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from hpcserve.config import Controller, Scaling
from hpcserve.domain.fleet import Fleet
from hpcserve.domain.instance import STARTING, Instance, InstanceEvent, InstanceState, Role
from hpcserve.domain.job import EndReason, JobPhase
from hpcserve.domain.model import Model
from hpcserve.domain.plan import Action, Cancel, Drain, Plan, Record, Stop, Submit
from hpcserve.policy.backoff import verdict
from hpcserve.policy.scaling.target import Target

#: staggered time limits come in so many lengths
_STAGGERS = 4
_LEAVING = (InstanceState.DRAINING, InstanceState.STOPPING)


def reconcile(
    fleet: Fleet,
    targets: Sequence[Target],
    *,
    controller: Controller,
    scaling: Scaling,
    now: datetime,
) -> Plan:
    """Return what to do now; every action says why."""
    actions: list[Action] = []
    for instance in fleet.instances:
        action = _watch(instance, fleet, controller, now)
        if action is not None:
            actions.append(action)
    if fleet.jobs is None:
        return tuple(actions)
    actions.extend(_orphans(fleet))
    touched = {a.instance.id for a in actions if isinstance(a, Stop | Drain | Record)}
    counting = _counting(fleet, touched)
    for target in targets:
        mine = counting.get((target.model, target.role), ())
        actions.extend(_scale(target, mine, fleet, controller=controller, scaling=scaling, now=now))
    return _within_budget(actions, fleet, scaling)


def _watch(instance: Instance, fleet: Fleet, settings: Controller, now: datetime) -> Action | None:
    match instance.state:
        case InstanceState.STOPPING:
            return _overdue(instance, fleet, settings, now)
        case InstanceState.ALLOCATED:
            return _unregistered(instance, fleet, settings, now)
        case InstanceState.LOADING | InstanceState.READY:
            return _silent(instance, fleet, settings, now)
        case InstanceState.UNREACHABLE | InstanceState.DRAINING:
            return _abandoned(instance, fleet, settings, now)
        case _:
            return None


def _overdue(
    instance: Instance, fleet: Fleet, settings: Controller, now: datetime
) -> Action | None:
    """Cancel again what was to end and did not."""
    job = None if fleet.jobs is None else fleet.jobs.jobs.get(instance.token)
    asked_at = instance.stop_asked_at or instance.heard_at
    if job is None or job.phase is JobPhase.GONE:
        return None
    if asked_at is not None and not _past(asked_at, settings.stop_repeat_s, now):
        return None
    return Stop(
        instance=instance,
        ending=instance.ending or EndReason.DRAINED,
        reason=f"job {job.job_id} is still {job.state} although it was to end",
    )


def _unregistered(
    instance: Instance, fleet: Fleet, settings: Controller, now: datetime
) -> Action | None:
    """Give up a running job whose agent never said hello, if anybody could have heard it."""
    started_at, listening = instance.started_at, fleet.listening_since
    if fleet.jobs is None or started_at is None or listening is None:
        return None
    if not _past(max(started_at, listening), settings.register_timeout_s, now):
        return None
    return Stop(
        instance=instance,
        ending=EndReason.LOAD_FAILED,
        reason=f"its agent has not registered within {settings.register_timeout_s:.0f} s "
        f"of the start of job {instance.job_id}; see the job's log",
    )


def _silent(instance: Instance, fleet: Fleet, settings: Controller, now: datetime) -> Action | None:
    if not _unheard(instance, fleet, settings.silence_s, now):
        return None
    after, transition = instance.on(
        InstanceEvent.SILENT,
        at=now,
        reason=f"its agent has been silent for {settings.silence_s:.0f} s",
    )
    return Record(instance=after, transitions=(transition,))


def _abandoned(
    instance: Instance, fleet: Fleet, settings: Controller, now: datetime
) -> Action | None:
    if fleet.jobs is None or not _unheard(instance, fleet, settings.abandon_s, now):
        return None
    return Stop(
        instance=instance,
        ending=instance.ending or EndReason.LOST,
        reason=f"its agent has been silent for {settings.abandon_s:.0f} s",
    )


def _unheard(instance: Instance, fleet: Fleet, seconds: float, now: datetime) -> bool:
    """Whether an agent was silent for so long while somebody listened."""
    return (
        instance.heard_at is not None
        and fleet.listening_since is not None
        and _past(instance.heard_at, seconds, now)
        and _past(fleet.listening_since, seconds, now)
    )


def _past(start: datetime, seconds: float, now: datetime) -> bool:
    return now - start >= timedelta(seconds=seconds)


def _orphans(fleet: Fleet) -> list[Action]:
    assert fleet.jobs is not None
    ended = {instance.token: instance for instance in fleet.ended}
    return [
        Cancel(
            job_id=job.job_id,
            reason=f"instance {ended[token].id} of this job has ended "
            f"({ended[token].end_reason}) and nobody may use it",
        )
        for token, job in sorted(fleet.jobs.jobs.items())
        if job.phase is not JobPhase.GONE and token in ended
    ]


def _counting(fleet: Fleet, touched: set[str]) -> Mapping[tuple[str, Role], Sequence[Instance]]:
    """Return the instances that are not on their way out, by what they count towards."""
    counting: dict[tuple[str, Role], list[Instance]] = {}
    for instance in fleet.instances:
        if instance.state not in _LEAVING and instance.id not in touched:
            counting.setdefault((instance.model, instance.role), []).append(instance)
    return counting


def _within_budget(actions: Sequence[Action], fleet: Fleet, scaling: Scaling) -> Plan:
    """Leave submissions out that would take more GPUs than the site's own cap."""
    if not scaling.gpus_max:
        return tuple(actions)
    left = scaling.gpus_max - sum(instance.gpus for instance in fleet.instances)
    kept: list[Action] = []
    for action in actions:
        if isinstance(action, Submit):
            model = fleet.models[action.model]
            left -= model.nodes * model.gpus_per_node
            if left < 0:
                continue
        kept.append(action)
    return tuple(kept)


def _scale(
    target: Target,
    mine: Sequence[Instance],
    fleet: Fleet,
    *,
    controller: Controller,
    scaling: Scaling,
    now: datetime,
) -> list[Action]:
    lead_s = scaling.handover_s if target.lead_s is None else target.lead_s
    leaving = {i.id for i in mine if _must_be_succeeded(i, lead_s, now)}
    lasting = [
        instance
        for instance in mine
        if instance.state is not InstanceState.UNREACHABLE and instance.id not in leaving
    ]
    missing = target.count - len(lasting)
    actions = _retire([i for i in mine if i.id in leaving], lasting, target)
    if missing > 0:
        may = verdict(target.model, fleet, controller, now)
        if may.given_up or may.retry_at is not None:
            return actions
        reason = target.reason
        if len(mine) > len(lasting):
            reason += "; it succeeds one that is near its time limit or unreachable"
        # after a fault one at a time, until one of them serves
        tries = 1 if may.faults else missing
        if may.faults and any(i.state in STARTING for i in lasting):
            return actions
        limits = _limits(target, fleet.models[target.model], len(lasting), tries)
        actions.extend(
            Submit(
                model=target.model,
                role=target.role,
                reason=reason,
                time_limit_s=limit_s,
                time_min_s=target.time_min_s,
            )
            for limit_s in limits
        )
    if missing < 0:
        actions.extend(_shrink(-missing, lasting, target, fleet.models[target.model], now))
    return actions


def _must_be_succeeded(instance: Instance, lead_s: float, now: datetime) -> bool:
    if instance.ends_at is None:
        return False
    before_s = min(lead_s, instance.time_limit_s / 4)
    return instance.ends_at - now <= timedelta(seconds=before_s)


def _retire(
    leaving: Sequence[Instance], lasting: Sequence[Instance], target: Target
) -> list[Action]:
    """Drain those near their time limit that enough others serve in place of."""
    serving = sum(1 for i in lasting if i.state is InstanceState.READY)
    if serving < target.count:
        return []
    return [
        Drain(
            instance=instance,
            ending=EndReason.DRAINED,
            reason=f"its time limit is near, and {serving} others serve",
        )
        for instance in leaving
        if instance.state is InstanceState.READY
    ]


def _limits(target: Target, model: Model, first: int, count: int) -> Sequence[int | None]:
    """Return the time limits to ask for; staggered ones are up to a quarter shorter."""
    if not target.staggered:
        return (target.time_limit_s,) * count
    whole_s = target.time_limit_s or model.time_limit_s
    return [whole_s - (first + n) % _STAGGERS * whole_s // (4 * _STAGGERS) for n in range(count)]


def _shrink(
    surplus: int, instances: Sequence[Instance], target: Target, model: Model, now: datetime
) -> list[Action]:
    """Give up the youngest that do not serve yet, then drain the longest idle."""
    actions: list[Action] = []
    starting = [i for i in reversed(instances) if i.state in STARTING]
    patience = timedelta(seconds=0 if target.release_now else model.idle_release_s)
    for instance in starting:
        if len(actions) < surplus and now - instance.requested_at >= patience:
            actions.append(
                Stop(
                    instance=instance,
                    ending=EndReason.SCALED_IN,
                    reason=f"not needed any more: {target.reason}",
                )
            )
    idle = [
        instance
        for instance in instances
        if instance.state is InstanceState.READY
        and (target.release_now or _idle_since(instance) <= now - patience)
    ]
    for instance in sorted(idle, key=_ends_at if target.release_now else _idle_since):
        if len(actions) < surplus:
            idle_s = (now - _idle_since(instance)).total_seconds()
            actions.append(
                Drain(
                    instance=instance,
                    ending=EndReason.SCALED_IN,
                    reason=f"not needed any more: {target.reason}"
                    if target.release_now
                    else f"idle for {idle_s:.0f} s, and {target.reason}",
                )
            )
    return actions


def _ends_at(instance: Instance) -> datetime:
    return instance.ends_at or instance.requested_at + timedelta(seconds=instance.time_limit_s)


def _idle_since(instance: Instance) -> datetime:
    return instance.busy_at or instance.ready_at or instance.requested_at
