"""What the controller does about the fleet, and what it leaves alone."""

from dataclasses import replace

import pytest

from hpcserve.config import Config
from hpcserve.domain.batch import Backlog
from hpcserve.domain.instance import InstanceState, Role
from hpcserve.domain.job import EndReason, JobPhase
from hpcserve.domain.plan import Cancel, Drain, Record, Stop, Submit
from hpcserve.policy.decide import decide
from hpcserve.policy.scaling.demand import DemandScaler
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

CONFIG = Config()


def plan(fleet):
    """Return what to do, without the bookkeeping."""
    everything = decide(fleet, DemandScaler(CONFIG.scaling), CONFIG, NOW)
    return tuple(a for a in everything if not (isinstance(a, Record) and not a.transitions))


def a_fault(number, **fields):
    """Return an instance that ended badly *number* seconds ago."""
    base = {
        "state": InstanceState.ENDED,
        "end_reason": EndReason.LOAD_FAILED,
        "ended_at": ago(number),
        "ready_at": None,
        "message": "No such file: /weights/m",
    }
    return an_instance(f"fault-{number}", **{**base, **fields})


def test_demand_for_a_cold_model_starts_one_instance():
    (submit,) = plan(a_fleet(demand={"m": a_demand(waiting=1)}))
    assert (type(submit), submit.model, submit.role) == (Submit, "m", Role.MIXED)
    assert submit.reason == "1 interactive requests in flight"


def test_a_starting_instance_counts():
    starting = an_instance(state=InstanceState.QUEUED)
    fleet = a_fleet(starting, demand={"m": a_demand(waiting=5)})
    assert plan(replace(fleet, jobs=a_view(a_job(starting)))) != ()
    assert not any(isinstance(a, Submit) for a in plan(fleet))


def test_a_backlog_is_served_up_to_the_catalogs_bound():
    backlog = Backlog(
        batch_id="b",
        batch_seq=1,
        owner="u",
        model="m",
        deadline_at=ahead(3600),
        created_at=ago(5),
        waiting=9000,
        leased=0,
    )
    submits = plan(a_fleet(backlog=(backlog,)))
    assert len(submits) == 2
    assert submits[0].reason == "9000 batch requests are open; the catalog allows 2"


def test_nothing_is_submitted_while_the_scheduler_is_silent():
    assert plan(a_fleet(demand={"m": a_demand(waiting=1)}, jobs=None)) == ()


def test_an_outage_of_the_scheduler_leaves_even_idle_and_stopping_instances_alone():
    idle = an_instance(busy_at=ago(99999), ready_at=ago(99999))
    stopping = an_instance("inst-2", InstanceState.STOPPING, stop_asked_at=ago(9999))
    assert plan(a_fleet(idle, stopping, jobs=None)) == ()


def test_an_idle_instance_is_drained_after_its_patience():
    (drain,) = plan(a_fleet(an_instance(busy_at=ago(901))))
    assert (type(drain), drain.ending) == (Drain, EndReason.SCALED_IN)
    assert plan(a_fleet(an_instance(busy_at=ago(899)))) == ()


def test_a_silent_agent_is_unreachable_and_replaced_but_not_ended():
    silent = an_instance(heard_at=ago(31))
    (record,) = plan(a_fleet(silent))
    assert record.instance.state is InstanceState.UNREACHABLE
    unreachable = a_fleet(record.instance, demand={"m": a_demand(running=1)})
    (submit,) = plan(unreachable)
    assert isinstance(submit, Submit)
    assert "unreachable" in submit.reason


@pytest.mark.parametrize("listening", [None, ago(10)])
def test_silence_says_nothing_while_nobody_listened(listening):
    fleet = a_fleet(
        an_instance(heard_at=ago(9999)),
        an_instance("inst-2", InstanceState.UNREACHABLE, heard_at=ago(9999)),
        listening_since=listening,
    )
    assert not any(isinstance(a, Stop | Record) for a in plan(fleet))


def test_an_agent_silent_for_very_long_is_given_up():
    lost = an_instance(state=InstanceState.UNREACHABLE, heard_at=ago(601))
    stop = plan(a_fleet(lost))[0]
    assert (type(stop), stop.ending) == (Stop, EndReason.LOST)


def test_an_agent_that_never_registers_is_a_load_failure():
    mute = an_instance(state=InstanceState.ALLOCATED, started_at=ago(301))
    (stop,) = plan(a_fleet(mute))
    assert (type(stop), stop.ending) == (Stop, EndReason.LOAD_FAILED)


def test_a_stop_without_effect_is_repeated():
    stuck = an_instance(state=InstanceState.STOPPING, stop_asked_at=ago(61))
    (stop,) = plan(a_fleet(stuck))
    assert isinstance(stop, Stop)
    fresh = an_instance(state=InstanceState.STOPPING, stop_asked_at=ago(5))
    assert plan(a_fleet(fresh)) == ()


def test_the_job_of_an_ended_instance_is_cancelled():
    ended = an_instance(state=InstanceState.ENDED, end_reason=EndReason.LOST, ended_at=ago(99))
    (cancel,) = plan(a_fleet(ended, jobs=a_view(a_job(ended))))
    assert isinstance(cancel, Cancel)


def test_a_job_with_an_unknown_token_is_left_alone():
    stranger = an_instance("somebody-elses")
    assert plan(a_fleet(jobs=a_view(a_job(stranger)))) == ()


def test_a_fault_backs_off_and_then_one_is_tried():
    wanted = {"m": a_demand(running=600)}
    assert plan(a_fleet(a_fault(2), demand=wanted)) == ()
    assert len(plan(a_fleet(a_fault(6), demand=wanted))) == 1


def test_a_fault_backs_off_while_the_faulty_one_is_still_ending():
    crashed = an_instance(state=InstanceState.STOPPING, ending=EndReason.CRASHED)
    assert plan(a_fleet(crashed, demand={"m": a_demand(waiting=1)})) == ()


def test_faults_in_a_row_give_the_model_up():
    faults = (a_fault(1000), a_fault(2000), a_fault(3000))
    assert plan(a_fleet(*faults, demand={"m": a_demand(waiting=1)})) == ()


def test_an_operators_reset_lets_it_be_tried_again():
    faults = (a_fault(1000), a_fault(2000), a_fault(3000))
    fleet = a_fleet(*faults, demand={"m": a_demand(waiting=1)}, forgiven_at={"m": ago(5)})
    assert len(plan(fleet)) == 1


@pytest.mark.parametrize("expected", [EndReason.PREEMPTED, EndReason.EXPIRED, EndReason.DRAINED])
def test_expected_ends_do_not_back_off(expected):
    ends = tuple(a_fault(n, end_reason=expected, ready_at=ago(5000)) for n in (1, 2, 3))
    assert len(plan(a_fleet(*ends, demand={"m": a_demand(waiting=1)}))) == 1


def test_a_successor_comes_before_the_time_limit():
    late = an_instance(ends_at=ahead(800), busy_at=ago(1))
    (submit,) = plan(a_fleet(late, demand={"m": a_demand(running=1)}))
    assert isinstance(submit, Submit)
    assert "succeeds" in submit.reason
    early = an_instance(ends_at=ahead(1000), busy_at=ago(1))
    assert plan(a_fleet(early, demand={"m": a_demand(running=1)})) == ()


def test_models_do_not_disturb_one_another():
    fleet = a_fleet(
        an_instance(busy_at=ago(1)),
        models={"m": a_model(), "n": a_model("n")},
        demand={"n": a_demand("n", waiting=1)},
    )
    (submit,) = plan(fleet)
    assert submit.model == "n"


def test_a_closed_site_ends_everything_and_submits_nothing():
    ready, queued = an_instance(busy_at=ago(1)), an_instance("inst-2", InstanceState.QUEUED)
    fleet = a_fleet(
        ready,
        queued,
        jobs=a_view(a_job(ready), a_job(queued, JobPhase.PENDING)),
        demand={"m": a_demand(waiting=9)},
        closed_because="root closed the site",
    )
    stops = plan(fleet)
    assert [(type(stop), stop.instance.id) for stop in stops] == [
        (Stop, "inst-1"),
        (Stop, "inst-2"),
    ]
    assert plan(replace(fleet, jobs=None)) == ()
