"""What each scaling policy asks for, and why."""

from dataclasses import replace
from datetime import timedelta

import pytest

from hpcserve.config import Config
from hpcserve.config.tree import Scaling
from hpcserve.domain.batch import Backlog
from hpcserve.domain.instance import InstanceState, Role
from hpcserve.domain.job import JobPhase, Partition
from hpcserve.domain.load import EngineLoad
from hpcserve.domain.plan import Drain, Submit
from hpcserve.policy.reconcile import reconcile
from hpcserve.policy.scaling.arrivals import Arrivals
from hpcserve.policy.scaling.backpressure import BackpressureScaler
from hpcserve.policy.scaling.chiron import ChironScaler
from hpcserve.policy.scaling.enova import EnovaScaler
from hpcserve.policy.scaling.freeness import FreenessScaler
from hpcserve.policy.scaling.groups import groups_of, waiting_s
from hpcserve.policy.scaling.hold import Hold
from hpcserve.policy.scaling.latency import Latency
from hpcserve.policy.scaling.queue_length import QueueLengthScaler
from hpcserve.policy.scaling.rates import Rates
from hpcserve.policy.scaling.readiness import observed_s, quantile_s
from hpcserve.policy.scaling.target import Target
from tests.builders import NOW, a_demand, a_fleet, a_job, a_model, a_view, ago, ahead, an_instance

SETTINGS = Scaling()


def after(seconds):
    """Return a time after NOW."""
    return NOW + timedelta(seconds=seconds)


def a_backlog(waiting, due_s, **fields):
    """Return open work that is due in *due_s*."""
    base = {
        "batch_id": "batch-1",
        "batch_seq": 1,
        "owner": "a",
        "model": "m",
        "deadline_at": ahead(due_s),
        "created_at": NOW,
        "waiting": waiting,
        "leased": 0,
    }
    return Backlog(**{**base, **fields})


def a_load(**fields):
    """Return an engine's reading."""
    names = EngineLoad.__slots__
    zeros = dict.fromkeys(names, 0) | {"at": NOW, "kv_cache_used_ratio": 0.0}
    return EngineLoad(**{**zeros, **fields})


def spare(gpus_idle):
    """Return a preemptible partition."""
    return Partition(
        name="spare",
        is_default=False,
        is_up=True,
        max_time_s=None,
        priority_tier=0,
        preempt_mode="cancel",
        grace_s=60,
        nodes_total=8,
        nodes_idle=gpus_idle,
        gpus_total=8,
        gpus_idle=gpus_idle,
    )


MANY = a_model(max_instances=40, max_num_seqs=10)


def big(*instances, **fields):
    """Return a fleet whose model may have many instances."""
    return a_fleet(*instances, models={"m": MANY}, **fields)


def counts(scaler, fleet, now=NOW):
    """Return what is wanted, by role."""
    return {target.role: target.count for target in scaler.targets(fleet, now)}


# Chiron


def test_chiron_holds_three_for_each_busy_instance():
    fleet = big(demand={"m": a_demand(running=45)})
    assert counts(ChironScaler(SETTINGS), fleet)[Role.MIXED] == 15


def test_chiron_adds_batch_instances_only_when_a_deadline_is_at_risk():
    scaler = ChironScaler(SETTINGS)
    assert counts(scaler, big(backlog=(a_backlog(1000, 86_400),)))[Role.BATCH] == 1
    assert counts(scaler, big(backlog=(a_backlog(100_000, 10_000),)))[Role.BATCH] >= 10
    assert counts(scaler, big())[Role.BATCH] == 0


# Ours


def test_ours_takes_idle_gpus_first_and_pays_only_when_slack_is_gone():
    relaxed = big(
        backlog=(a_backlog(20_000, 50_000),),
        partitions=(spare(4),),
        opportunistic_partition="spare",
    )
    assert counts(BackpressureScaler(SETTINGS), relaxed) == {Role.MIXED: 0, Role.BATCH: 2}
    urgent = replace(relaxed, backlog=(a_backlog(100_000, 6000),))
    wanted = counts(BackpressureScaler(SETTINGS), urgent)
    assert wanted[Role.BATCH] == 4
    assert wanted[Role.MIXED] >= 100_000 / (6000 - 600)


def test_ours_starts_at_once_where_waiting_saves_nothing():
    """Without chat and without a preemptible partition a batch does not wait for its deadline."""
    alone = big(backlog=(a_backlog(10, 86_400),))
    assert counts(BackpressureScaler(SETTINGS), alone)[Role.MIXED] == 1
    beside_chat = replace(alone, demand={"m": a_demand(running=1)})
    assert counts(BackpressureScaler(SETTINGS), beside_chat)[Role.MIXED] == 1


def test_ours_asks_so_early_that_instances_serve_in_time():
    """The same work due at the same time is asked for earlier where instances take longer."""
    work = (a_backlog(36_000, 7200),)
    slow = [
        an_instance(f"slow-{n}", requested_at=ago(4000), ready_at=ago(400), role=Role.MIXED)
        for n in range(8)
    ]
    ended = [replace(i, state=InstanceState.ENDED, ended_at=ago(10)) for i in slow]
    patient = counts(BackpressureScaler(SETTINGS), big(backlog=work))
    hurried = counts(BackpressureScaler(SETTINGS), big(*ended, backlog=work))
    assert hurried[Role.MIXED] > patient[Role.MIXED]


def test_ours_releases_late_and_grows_at_once():
    scaler = BackpressureScaler(SETTINGS)
    busy = big(demand={"m": a_demand(running=30)})
    quiet = big(demand={"m": a_demand(running=0)})
    peak = counts(scaler, busy)[Role.MIXED]
    assert counts(scaler, quiet, after(MANY.idle_release_s - 60))[Role.MIXED] == peak
    assert counts(scaler, quiet, after(2 * MANY.idle_release_s))[Role.MIXED] < peak


def test_ours_releases_nothing_while_nobody_listens():
    four = [an_instance(f"inst-{n}") for n in range(4)]
    fleet = big(*four, listening_since=None)
    assert counts(BackpressureScaler(SETTINGS), fleet)[Role.MIXED] == 4


def test_ours_says_why():
    fleet = big(
        demand={"m": a_demand(running=30)},
        backlog=(a_backlog(100_000, 6000),),
    )
    mixed, batch = BackpressureScaler(SETTINGS).targets(fleet, NOW)
    assert "30 interactive requests are in flight" in mixed.reason
    assert "slack is gone" in mixed.reason
    assert batch.reason == "no partition is opportunistic"


def test_ours_plans_hand_over_with_the_observed_time_to_ready():
    slow = [an_instance(f"inst-{n}", requested_at=ago(5000), ready_at=ago(1000)) for n in range(8)]
    mixed, _ = BackpressureScaler(SETTINGS).targets(big(*slow), NOW)
    assert (mixed.lead_s, mixed.staggered) == (4000.0, True)


# The measurements behind it


def test_growth_is_measured_once_it_has_been_seen():
    arrivals = Arrivals()
    for minute in range(240):
        # every half an hour it doubles for ten minutes
        arrivals.observe(200 if minute % 30 >= 20 else 100, after(60 * minute))
    assert arrivals.growth(600, 3.0) == pytest.approx(2.0)
    assert Arrivals().growth(600, 3.0) == 3.0


def test_yesterday_promises_its_morning():
    arrivals = Arrivals()
    for minute in range(24 * 60 + 55):
        arrivals.observe(500 if minute % 1440 in range(60, 120) else 50, after(60 * minute))
    assert arrivals.forecast(900) == pytest.approx(500)
    assert Arrivals().forecast(900) is None


def test_chat_counts_as_on_full_instances_whatever_batch_does_to_latency():
    """ITL is 10 ms and 1 ms a request; batch makes it four times as long."""
    latency, itl_sum_s, tokens = Latency(), 0.0, 0

    def look(running, itl_s, leased=0):
        nonlocal itl_sum_s, tokens
        tokens += 1000
        itl_sum_s += 1000 * itl_s
        latency.observe(
            big(
                an_instance(load=a_load(itl_sum_s=itl_sum_s, itl_count=tokens)),
                demand={"m": a_demand(running=running)},
                backlog=(a_backlog(9, 9000, leased=leased),) if leased else (),
            )
        )

    assert latency.to_full("m", 50, 0.2) == 1.0
    for running in (5, 10, 15, 20) * 4:
        look(running, 0.010 + 0.001 * running)
    # 20 in flight at 30 ms are 40 at the 60 ms of a full instance
    assert latency.to_full("m", 50, 0.2) == pytest.approx(2.0, rel=0.02)
    look(80, 0.12, leased=60)
    assert 80 * latency.to_full("m", 50, 0.2) == pytest.approx(40, rel=0.02)


def test_the_rate_of_an_instance_comes_from_the_backlog():
    rates = Rates()
    two = [an_instance("a"), an_instance("b")]
    for minute in range(4):
        work = a_backlog(10_000 - 600 * minute, 90_000, leased=8)
        rates.observe(big(*two, backlog=(work,)), after(60 * minute))
    assert rates.per_s("m", first=1.0) == pytest.approx(5.0)
    assert rates.per_s("other", first=1.5) == 1.5


def test_an_instance_that_waits_longer_than_all_others_counts():
    waits = an_instance("w", InstanceState.QUEUED, requested_at=ago(9000))
    quick = an_instance("q", requested_at=ago(600), ready_at=ago(500))
    samples = observed_s(big(waits, quick), NOW)
    assert samples["m", Role.MIXED] == [100.0, 9000.0]
    assert quantile_s(samples, "m", Role.MIXED, 0.9, 600.0) == 9000.0
    assert quantile_s({}, "m", Role.MIXED, 0.9, 600.0) == 600.0


def test_near_deadlines_are_one_group():
    groups = groups_of((a_backlog(5, 3600), a_backlog(7, 3700), a_backlog(11, 9000)), "m")
    assert [(g.deadline_at, g.open_before) for g in groups] == [
        (ahead(3600), 12),
        (ahead(9000), 23),
    ]


def test_the_waiting_bound_is_the_mean_and_z_deviations():
    assert waiting_s(100, 2.0, 1.65) == pytest.approx(50 + 1.65 * 10 / 2)
    assert waiting_s(0, 0.0, 1.65) == 0.0
    assert waiting_s(1, 0.0, 1.65) == float("inf")


def test_the_highest_wish_of_a_window_holds():
    hold = Hold()
    assert [hold.highest("m", w, 100, after(t)) for t, w in [(0, 5), (50, 2), (99, 3)]] == [5, 5, 5]
    assert hold.highest("m", 1, 100, after(120)) == 3


# Baselines


def test_queue_length_counts_everything_that_waits():
    fleet = big(demand={"m": a_demand(running=15)}, backlog=(a_backlog(100, 90_000),))
    assert counts(QueueLengthScaler(SETTINGS), fleet) == {Role.MIXED: 12}


@pytest.mark.parametrize(("used", "step"), [(1.0, 1), (0.5, 0), (0.0, -1)])
def test_freeness_takes_one_step_each_ten_seconds(used, step):
    scaler = FreenessScaler(SETTINGS)
    running = round(used * 10)
    busy = an_instance(load=a_load(running=running, kv_cache_used_ratio=used))
    start = big(an_instance(load=a_load(running=10, kv_cache_used_ratio=1.0)))
    first = counts(scaler, start)[Role.MIXED]
    assert counts(scaler, big(busy), after(5))[Role.MIXED] == first
    assert counts(scaler, big(busy), after(11))[Role.MIXED] == first + step


def test_enova_grows_when_requests_wait_for_three_minutes_and_halves_when_idle():
    scaler = EnovaScaler(SETTINGS)
    for tick in range(8):
        load = a_load(running=10, kv_cache_used_ratio=0.9, requests_total=30 * tick)
        fleet = big(an_instance(load=load), demand={"m": a_demand(waiting=60 + 30 * tick)})
        grown = counts(scaler, fleet, after(30 * tick))[Role.MIXED]
    assert grown > 1
    for tick in range(8, 18):
        fleet = big(an_instance(load=a_load(requests_total=240)))
        shrunk = counts(scaler, fleet, after(30 * tick))[Role.MIXED]
    assert shrunk < grown


def test_enova_changes_nothing_without_a_reading():
    scaler = EnovaScaler(SETTINGS)
    fleet = big(an_instance(), demand={"m": a_demand(waiting=500)})
    assert {counts(scaler, fleet, after(30 * n))[Role.MIXED] for n in range(20)} == {1}


# What reconcile does with it


def plan(fleet, target, **scaling):
    """Return what is done for one target."""
    config = Config(scaling=Scaling(**scaling))
    return reconcile(
        fleet, (target,), controller=config.controller, scaling=config.scaling, now=NOW
    )


def a_target(**fields):
    """Return a target of mixed instances."""
    return Target(**{"model": "m", "role": Role.MIXED, "count": 1, "reason": "wanted", **fields})


def test_a_successor_is_asked_for_one_lead_before_the_end():
    old = an_instance(ends_at=ahead(3000))
    assert plan(big(old), a_target(lead_s=2000)) == ()
    assert [type(a) for a in plan(big(old), a_target(lead_s=3500))] == [Submit]


def test_the_predecessor_goes_once_its_successor_serves():
    old, new = an_instance("old", ends_at=ahead(600)), an_instance("new", ends_at=ahead(14_000))
    (drain,) = plan(big(old, new), a_target(lead_s=900))
    assert (type(drain), drain.instance.id) == (Drain, "old")
    assert drain.reason == "its time limit is near, and 1 others serve"
    starting = an_instance("new", InstanceState.QUEUED)
    jobs = a_view(a_job(old), a_job(starting, JobPhase.PENDING))
    assert plan(replace(big(old, starting), jobs=jobs), a_target(lead_s=900)) == ()


def test_limits_are_staggered():
    limits = [a.time_limit_s for a in plan(big(), a_target(count=4, staggered=True))]
    assert limits == [14_400, 13_500, 12_600, 11_700]


def test_a_busy_surplus_goes_when_the_policy_says_now():
    two = [an_instance(f"inst-{n}", busy_at=NOW, ends_at=ahead(9000 + n)) for n in range(2)]
    assert plan(big(*two), a_target()) == ()
    (drain,) = plan(big(*two), a_target(release_now=True))
    assert (drain.instance.id, drain.reason) == ("inst-0", "not needed any more: wanted")


def test_submissions_stop_at_the_gpu_cap():
    one = an_instance(gpus=1)
    assert len(plan(big(one), a_target(count=9), gpus_max=4)) == 3
