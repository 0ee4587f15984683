"""Hierarchical backpressure that knows Slurm; ours, built on Chiron (arXiv 2501.08090).

Chat, role MIXED. `desired = ceil(level / (Theta * max_num_seqs))`, with Theta measured over the
*observed* time to ready (queue wait + load, p90) and the level as on full instances (`latency`),
and never less than what is in flight now or what yesterday's same hours promise. Release is
asymmetric: the highest wish of `idle_release_s` holds. A successor is asked for one time to ready
before a time limit, and limits are staggered.

Batch, in this order:

1. Spare slots of chat instances: whatever they do is free.
2. Opportunistic instances, role BATCH: as many as GPUs are idle there and as the work needs at
   `batch_slack_ratio` of the time left; short time limits that fit holes (`opportunistic_s`, down
   to a quarter of it), released when the queue is empty. Without such a partition: none.
3. Paid instances, role MIXED beyond chat's: only when slack is gone. With x instances the work of a
   group would be done exactly at its deadline if they were asked for now and served one time to
   ready later; they are asked for when x reaches `batch_slack_ratio` of those that may be had at a
   quarter of the bound, as `ceil(x / batch_slack_ratio)`. Opportunistic ones count half in what is
   served meanwhile, since they may vanish. Where there is no chat to ride on and no opportunistic
   partition, waiting saves nothing: one at least is asked for at once.

Evidence rule: nobody listening to gateways and agents means that nothing is released.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from math import ceil
from typing import final

from hpcserve.config import Scaling
from hpcserve.domain.fleet import Fleet
from hpcserve.domain.instance import STARTING, Instance, InstanceState, Role
from hpcserve.domain.model import Model
from hpcserve.policy.scaling.arrivals import Arrivals
from hpcserve.policy.scaling.chat import bounded, chat_of
from hpcserve.policy.scaling.groups import Group, groups_of
from hpcserve.policy.scaling.hold import Hold
from hpcserve.policy.scaling.latency import Latency
from hpcserve.policy.scaling.rates import Rates
from hpcserve.policy.scaling.readiness import Samples, observed_s, quantile_s
from hpcserve.policy.scaling.target import Target

#: quantile of the time to ready that is planned with
_READY_Q = 0.9
#: deviations between windows taken off the measured rate
_Z = 1.0
#: part of an opportunistic instance's work that is counted on
_OPPORTUNISTIC_TRUST = 0.5
#: escalation waits until it needs this part of the instances that are left
_PAID_STEP = 0.25


@dataclass(slots=True)
class _Memory:
    arrivals: Arrivals = field(default_factory=Arrivals)
    #: paid instances of batch work, now and before this instant: asked twice, it decides alike
    paid: int = 0
    paid_before: int = 0
    decided_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Now:
    """What one decision about one model looks at."""

    model: Model
    fleet: Fleet
    now: datetime
    #: instances that count, by role
    mixed: list[Instance]
    batch: list[Instance]
    #: time to ready, s
    paid_lead_s: float
    #: batch requests a second of one instance
    rate: float


@final
class BackpressureScaler:
    """Interactive latency first, then deadlines, with the fewest paid GPU-hours."""

    def __init__(self, settings: Scaling) -> None:
        """Take the `[scaling]` section."""
        self._settings = settings
        self._rates = Rates()
        self._latency = Latency()
        self._hold = Hold()
        self._memory: dict[str, _Memory] = {}

    def targets(self, fleet: Fleet, now: datetime) -> tuple[Target, ...]:
        """Return a MIXED and a BATCH target a model."""
        self._rates.observe(fleet, now)
        self._latency.observe(fleet)
        samples = observed_s(fleet, now)
        by_model: dict[str, list[Instance]] = {}
        for instance in fleet.instances:
            if instance.state is InstanceState.READY or instance.state in STARTING:
                by_model.setdefault(instance.model, []).append(instance)
        return tuple(
            target
            for model in fleet.models.values()
            for target in self._targets(
                self._now(model, by_model.get(model.name, []), samples, fleet, now)
            )
        )

    def _now(
        self, model: Model, mine: list[Instance], samples: Samples, fleet: Fleet, now: datetime
    ) -> _Now:
        settings = self._settings
        return _Now(
            model=model,
            fleet=fleet,
            now=now,
            mixed=[i for i in mine if i.role is not Role.BATCH],
            batch=[i for i in mine if i.role is Role.BATCH],
            paid_lead_s=quantile_s(
                samples, model.name, Role.MIXED, _READY_Q, settings.ready_first_s
            ),
            rate=self._rates.per_s(model.name, settings.batch_rate_first, _Z),
        )

    def _targets(self, seen: _Now) -> tuple[Target, Target]:
        memory = self._memory.setdefault(seen.model.name, _Memory())
        chat, why = self._chat(seen, memory)
        groups = groups_of(seen.fleet.backlog, seen.model.name)
        opportunistic, batch_why = self._opportunistic(seen, groups, chat)
        paid, paid_why = self._paid(seen, groups, chat, memory)
        mixed = bounded(chat + paid, seen.model)
        if seen.fleet.listening_since is None:
            mixed = max(mixed, len(seen.mixed))
            why = f"{why}; nothing is released while nobody listens to the agents"
        limit_s = min(self._settings.opportunistic_s, seen.model.time_limit_s)
        return (
            Target(
                model=seen.model.name,
                role=Role.MIXED,
                count=mixed,
                reason="; ".join(part for part in (why, paid_why) if part),
                lead_s=seen.paid_lead_s,
                release_now=True,
                staggered=True,
            ),
            Target(
                model=seen.model.name,
                role=Role.BATCH,
                count=opportunistic,
                reason=batch_why,
                lead_s=0.0,
                release_now=True,
                time_limit_s=limit_s,
                time_min_s=limit_s // 4,
            ),
        )

    def _chat(self, seen: _Now, memory: _Memory) -> tuple[int, str]:
        model, settings = seen.model, self._settings
        chat = chat_of(seen.fleet, model, settings.demand_memory_s, seen.now)
        full = float(model.max_num_seqs)
        factor = self._latency.to_full(model.name, full, model.itl_slo_ms / 1000)
        running = round(chat.running * factor)
        load = running + chat.waiting
        # a queue that grew for want of capacity is no growth of demand
        memory.arrivals.observe(running + min(chat.waiting, running), seen.now)
        growth = memory.arrivals.growth(seen.paid_lead_s, 1 / settings.theta_first)
        level = memory.arrivals.level()
        ahead = max(level * growth, load, memory.arrivals.forecast(seen.paid_lead_s) or 0)
        wish = ceil(ahead / full)
        if chat.recent or chat.in_flight:
            wish = max(wish, 1)
        count = self._hold.highest(model.name, bounded(wish, model), model.idle_release_s, seen.now)
        return count, (
            f"{chat.in_flight} interactive requests are in flight, {load} on full instances, and "
            f"may become {ahead:.0f} (Theta {1 / growth:.2f}) within the "
            f"{seen.paid_lead_s:.0f} s that one takes"
        )

    def _opportunistic(self, seen: _Now, groups: tuple[Group, ...], chat: int) -> tuple[int, str]:
        name = seen.fleet.opportunistic_partition
        where = next((p for p in seen.fleet.partitions if p.name == name), None)
        if not groups or where is None:
            return 0, "the batch queue is empty" if not groups else "no partition is opportunistic"
        each = max(1, seen.model.nodes * seen.model.gpus_per_node)
        held = sum(1 for i in seen.batch if i.state not in STARTING)
        room = held + where.gpus_idle // each
        need = max(
            group.open_before
            / (seen.rate * max(1.0, self._settings.batch_slack_ratio * _left_s(group, seen.now)))
            for group in groups
        )
        # capacity that is free and may vanish: twice what the deadlines need
        wish = min(ceil(need / _OPPORTUNISTIC_TRUST), seen.model.max_instances - chat, room)
        # those that are there go on while there is work: their GPUs would not come back
        count = max(0, wish, len(seen.batch))
        return count, (
            f"{groups[-1].open_before} batch requests are open, {where.gpus_idle} GPUs are idle "
            f"in {name}, and {need:.1f} instances would be in time"
        )

    def _paid(
        self, seen: _Now, groups: tuple[Group, ...], chat: int, memory: _Memory
    ) -> tuple[int, str]:
        """Return how many paid instances batch work needs beyond chat's."""
        if not groups:
            memory.paid = memory.paid_before = 0
            return 0, ""
        ratio = self._settings.batch_slack_ratio
        spare = sum(1 for i in seen.mixed if i.state is InstanceState.READY)
        vanishing = sum(1 for i in seen.batch if i.state is InstanceState.READY)
        if memory.decided_at != seen.now:
            memory.decided_at, memory.paid_before = seen.now, memory.paid
        before = memory.paid_before
        extra = min(before, max(0, spare - chat))
        served = seen.rate * (spare - extra + _OPPORTUNISTIC_TRUST * vanishing)
        lead_s = seen.paid_lead_s if before == 0 else 0.0
        needed = max(
            (group.open_before - served * left_s) / (seen.rate * max(1.0, left_s - lead_s))
            for group in groups
            for left_s in [_left_s(group, seen.now)]
        )
        allowed = max(0, seen.model.max_instances - chat)
        wish = min(allowed, max(0, ceil(needed / ratio)))
        if not (chat or seen.fleet.opportunistic_partition):
            memory.paid = max(wish, min(1, allowed))
        elif before == 0:
            step = max(1.0, _PAID_STEP * allowed)
            memory.paid = wish if needed >= ratio * step else 0
        else:
            memory.paid = self._hold.highest(
                f"{seen.model.name} paid", wish, seen.model.idle_release_s, seen.now
            )
        if memory.paid == 0:
            return 0, ""
        return memory.paid, (
            f"{memory.paid} more for {groups[-1].open_before} batch requests: "
            f"{'slack is gone' if needed > 0 else 'nothing else serves them'}, and "
            f"{max(0.0, needed):.1f} instances would finish just in time"
        )


def _left_s(group: Group, now: datetime) -> float:
    return max(0.0, (group.deadline_at - now).total_seconds())
