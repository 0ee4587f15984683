"""What reconcile and every scaling policy keep, whatever the fleet."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcserve.config import Config
from hpcserve.config.tree import Scaling
from hpcserve.domain.batch import Backlog
from hpcserve.domain.instance import InstanceState, Role
from hpcserve.domain.job import JobPhase
from hpcserve.domain.plan import Cancel, Drain, Stop, Submit
from hpcserve.policy.decide import decide
from hpcserve.policy.reconcile import reconcile
from hpcserve.policy.scaling.registry import SCALERS
from hpcserve.policy.scaling.target import Target
from tests.builders import (
    NOW,
    a_demand,
    a_fleet,
    a_job,
    a_model,
    a_view,
    ago,
    ahead,
    an_instance,
)

CONFIG = Config(scaling=Scaling(gpus_max=12))
#: a busy machine is no failure
UNHURRIED = settings(deadline=None)
LIVE = [s for s in InstanceState if s is not InstanceState.ENDED]


@st.composite
def fleets(draw):
    """Return a fleet of two models whose jobs the scheduler lists, or not."""
    instances = []
    for number in range(draw(st.integers(0, 8))):
        state = draw(st.sampled_from(LIVE))
        fields = {
            "model": draw(st.sampled_from(["m", "n"])),
            "role": draw(st.sampled_from([Role.MIXED, Role.BATCH])),
            "requested_at": ago(draw(st.integers(600, 9000))),
        }
        if state in (InstanceState.READY, InstanceState.DRAINING):
            fields["busy_at"] = ago(draw(st.integers(0, 3000)))
            fields["ends_at"] = ahead(draw(st.integers(0, 12_000)))
        instances.append(an_instance(f"inst-{number}", state, **fields))
    jobs = a_view(
        *(
            a_job(i, JobPhase.PENDING if i.state is InstanceState.QUEUED else JobPhase.HELD)
            for i in instances
            if i.job_id
        )
    )
    return a_fleet(
        *instances,
        jobs=draw(st.sampled_from([jobs, jobs, None])),
        listening_since=draw(st.sampled_from([ago(7200), ago(10), None])),
        models={name: a_model(name, max_instances=draw(st.integers(0, 6))) for name in ("m", "n")},
        demand={
            name: a_demand(
                name, running=draw(st.integers(0, 900)), waiting=draw(st.integers(0, 99))
            )
            for name in draw(st.lists(st.sampled_from(["m", "n"]), unique=True))
        },
        backlog=tuple(
            Backlog(
                batch_id=f"batch-{n}",
                batch_seq=n,
                owner="a",
                model=draw(st.sampled_from(["m", "n"])),
                deadline_at=ahead(draw(st.integers(60, 90_000))),
                created_at=ago(60),
                waiting=draw(st.integers(0, 100_000)),
                leased=0,
            )
            for n in range(draw(st.integers(0, 3)))
        ),
    )


TARGETS = st.builds(
    lambda counts, release_now, lead_s: tuple(
        Target(
            model=model,
            role=role,
            count=count,
            reason="a test wants it",
            release_now=release_now,
            lead_s=lead_s,
        )
        for (model, role), count in zip(
            [(m, r) for m in ("m", "n") for r in (Role.MIXED, Role.BATCH)], counts, strict=True
        )
    ),
    st.lists(st.integers(0, 6), min_size=4, max_size=4),
    st.booleans(),
    st.sampled_from([None, 0.0, 900.0, 7200.0]),
)


def plan_of(fleet, targets, now=NOW):
    return reconcile(fleet, targets, controller=CONFIG.controller, scaling=CONFIG.scaling, now=now)


@UNHURRIED
@given(fleets(), TARGETS)
def test_every_action_has_a_reason(fleet, targets):
    for action in plan_of(fleet, targets):
        if isinstance(action, Stop | Drain | Submit | Cancel):
            assert action.reason


@UNHURRIED
@given(fleets(), TARGETS)
def test_a_ready_instance_goes_only_when_enough_remain(fleet, targets):
    """Of those that serve, never more leave than there are beyond the target."""
    leaving = {a.instance.id for a in plan_of(fleet, targets) if isinstance(a, Stop | Drain)}
    for target in targets:
        serving = [
            i
            for i in fleet.instances
            if (i.model, i.role, i.state) == (target.model, target.role, InstanceState.READY)
        ]
        going = [i for i in serving if i.id in leaving]
        assert not going or len(serving) - len(going) >= min(target.count, len(serving))


@UNHURRIED
@given(fleets(), TARGETS)
def test_without_the_scheduler_nothing_is_stopped_or_asked_for(fleet, targets):
    plan = plan_of(replace(fleet, jobs=None), targets)
    assert not [a for a in plan if isinstance(a, Stop | Drain | Submit | Cancel)]


@UNHURRIED
@given(fleets(), TARGETS)
def test_the_gpu_cap_holds(fleet, targets):
    asked = sum(isinstance(a, Submit) for a in plan_of(fleet, targets))
    held = sum(i.gpus for i in fleet.instances)
    assert asked == 0 or held + asked <= CONFIG.scaling.gpus_max


@UNHURRIED
@given(fleets(), TARGETS)
def test_the_same_fleet_gets_the_same_plan(fleet, targets):
    assert plan_of(fleet, targets) == plan_of(fleet, targets)


@UNHURRIED
@given(fleets(), TARGETS, st.randoms(use_true_random=False))
def test_the_order_of_instances_does_not_matter(fleet, targets, rng: random.Random):
    shuffled = list(fleet.instances)
    rng.shuffle(shuffled)
    mixed = replace(fleet, instances=tuple(shuffled))

    def known(plan):
        return sorted((type(a).__name__, a.model if isinstance(a, Submit) else "") for a in plan)

    assert known(plan_of(fleet, targets)) == known(plan_of(mixed, targets))


@UNHURRIED
@given(fleets(), TARGETS, st.integers(-10_000, 10_000))
def test_another_day_gets_the_same_plan(fleet, targets, seconds):
    shift = timedelta(seconds=seconds)
    moved = replace(
        fleet,
        instances=tuple(shifted(i, shift) for i in fleet.instances),
        jobs=fleet.jobs and replace(fleet.jobs, asked_at=fleet.jobs.asked_at + shift),
        listening_since=fleet.listening_since and fleet.listening_since + shift,
    )
    before = [(type(a), a.reason) for a in plan_of(fleet, targets) if hasattr(a, "reason")]
    after = [
        (type(a), a.reason) for a in plan_of(moved, targets, NOW + shift) if hasattr(a, "reason")
    ]
    assert before == after


def shifted(instance, shift):
    """Return the instance as it would be on another day."""
    names = [n for n in instance.__slots__ if n.endswith("_at") and getattr(instance, n)]
    return replace(instance, **{n: getattr(instance, n) + shift for n in names})


@UNHURRIED
@given(TARGETS)
def test_it_converges(targets):
    """Asked for again and again, with what was asked for in the queue, it asks for nothing more."""
    instances = []
    models = {name: a_model(name, max_instances=6) for name in ("m", "n")}
    for _ in range(8):
        live = a_fleet(*instances, models=models)
        submits = [a for a in plan_of(live, targets) if isinstance(a, Submit)]
        if not submits:
            break
        instances.extend(
            an_instance(
                f"inst-{len(instances) + n}",
                InstanceState.QUEUED,
                model=submit.model,
                role=submit.role,
                requested_at=NOW,
            )
            for n, submit in enumerate(submits)
        )
    assert plan_of(a_fleet(*instances, models=models), targets) == ()
    wanted = sum(target.count for target in targets)
    assert len(instances) == min(wanted, CONFIG.scaling.gpus_max)


@pytest.mark.parametrize("name", sorted(SCALERS))
@settings(max_examples=50, deadline=None)
@given(fleet=fleets())
def test_a_policy_stays_within_the_catalog_and_repeats_itself(name, fleet):
    scaler = SCALERS[name](CONFIG.scaling)
    first = scaler.targets(fleet, NOW)
    assert scaler.targets(fleet, NOW) == first
    assert all(target.reason for target in first)
    for model in fleet.models.values():
        count = sum(target.count for target in first if target.model == model.name)
        # what is there may stay: nothing is released on missing evidence
        there = sum(i.model == model.name for i in fleet.instances)
        assert 0 <= count <= max(model.max_instances, there)


@pytest.mark.parametrize("name", sorted(SCALERS))
@settings(max_examples=25, deadline=None)
@given(fleet=fleets())
def test_a_decision_says_the_same_whatever_the_time_of_day(name, fleet):
    shift = timedelta(days=3)
    moved = replace(
        fleet,
        instances=tuple(shifted(i, shift) for i in fleet.instances),
        demand={n: replace(d, asked_at=d.asked_at + shift) for n, d in fleet.demand.items()},
        backlog=tuple(
            replace(b, deadline_at=b.deadline_at + shift, created_at=b.created_at + shift)
            for b in fleet.backlog
        ),
        jobs=fleet.jobs and replace(fleet.jobs, asked_at=fleet.jobs.asked_at + shift),
        listening_since=fleet.listening_since and fleet.listening_since + shift,
    )

    def said(a_fleet_, now):
        plan = decide(a_fleet_, SCALERS[name](CONFIG.scaling), CONFIG, now)
        return [(type(a), a.reason) for a in plan if hasattr(a, "reason")]

    assert said(fleet, NOW) == said(moved, NOW + shift)
