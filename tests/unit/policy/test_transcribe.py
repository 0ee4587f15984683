"""What may, and what may not, be concluded from the scheduler's answer."""

import pytest

from hpcserve.config import Controller
from hpcserve.domain.instance import InstanceState
from hpcserve.domain.job import EndReason, JobPhase
from hpcserve.policy.transcribe import transcribe, why_gone
from tests.builders import NOW, a_job, a_view, ago, ahead, an_instance

SETTINGS = Controller()


def one(instance, view, accounted=None):
    """Return the instance after the scheduler's answer."""
    records = transcribe((instance,), view, accounted or {}, SETTINGS, NOW)
    return records[0].instance if records else instance


def test_no_answer_changes_nothing():
    assert transcribe((an_instance(),), None, {}, SETTINGS, NOW) == ()


def test_an_intent_is_adopted_by_its_token():
    intent = an_instance(state=InstanceState.REQUESTED)
    after = one(intent, a_view(a_job(intent, JobPhase.PENDING, job_id="77")))
    assert (after.state, after.job_id) == (InstanceState.QUEUED, "77")


def test_an_intent_whose_job_already_runs_is_adopted_too():
    intent = an_instance(state=InstanceState.REQUESTED)
    after = one(intent, a_view(a_job(intent, job_id="77", end_at=ahead(60), nodes=("n1",))))
    assert (after.state, after.job_id, after.ends_at, after.nodes) == (
        InstanceState.ALLOCATED,
        "77",
        ahead(60),
        ("n1",),
    )


@pytest.mark.parametrize(
    ("age_s", "state"),
    [(10, InstanceState.REQUESTED), (31, InstanceState.ENDED)],
)
def test_an_intent_without_a_job_is_lost_only_after_the_grace(age_s, state):
    after = one(an_instance(state=InstanceState.REQUESTED, requested_at=ago(age_s)), a_view())
    assert after.state is state
    assert after.end_reason is (EndReason.LOST if state is InstanceState.ENDED else None)


def test_a_pending_job_tells_its_reason_and_expected_start():
    queued = an_instance(state=InstanceState.QUEUED)
    job = a_job(queued, JobPhase.PENDING, reason="Resources", start_at=ahead(300))
    after = one(queued, a_view(job))
    assert (after.job_reason, after.expected_start_at) == ("Resources", ahead(300))


def test_a_missing_job_is_first_only_noted():
    after = one(an_instance(), a_view())
    assert (after.state, after.job_missing_at) == (InstanceState.READY, NOW)


def test_a_missing_job_whose_agent_is_heard_is_never_given_up():
    instance = an_instance(job_missing_at=ago(9999), heard_at=ago(1))
    assert one(instance, a_view()) == instance


def test_a_missing_job_with_a_silent_agent_is_lost_after_a_bound():
    instance = an_instance(job_missing_at=ago(61), heard_at=ago(61))
    after = one(instance, a_view())
    assert (after.state, after.end_reason) == (InstanceState.ENDED, EndReason.LOST)


def test_a_job_that_shows_up_again_is_no_longer_missing():
    instance = an_instance(job_missing_at=ago(30))
    assert one(instance, a_view(a_job(instance))).job_missing_at is None


def test_a_squeue_older_than_the_submission_says_nothing():
    queued = an_instance(state=InstanceState.QUEUED, submitted_at=ago(1))
    assert one(queued, a_view(asked_at=ago(2))) == queued


def test_accounting_settles_what_squeue_forgot():
    instance = an_instance()
    gone = a_job(instance, JobPhase.GONE, state="NODE_FAIL", end_reason=EndReason.NODE_FAILED)
    after = one(instance, a_view(), {instance.token: gone})
    assert (after.state, after.end_reason) == (InstanceState.ENDED, EndReason.NODE_FAILED)


def test_a_stop_that_the_scheduler_no_longer_lists_is_complete():
    stopping = an_instance(state=InstanceState.STOPPING, ending=EndReason.SCALED_IN)
    after = one(stopping, a_view())
    assert (after.state, after.end_reason) == (InstanceState.ENDED, EndReason.SCALED_IN)


@pytest.mark.parametrize(
    ("fields", "slurm", "reason"),
    [
        ({"ending": EndReason.LOAD_FAILED}, EndReason.CANCELLED_OUTSIDE, EndReason.LOAD_FAILED),
        ({"ready_at": None}, EndReason.CRASHED, EndReason.LOAD_FAILED),
        ({}, EndReason.CRASHED, EndReason.CRASHED),
        ({}, EndReason.PREEMPTED, EndReason.PREEMPTED),
        ({}, EndReason.CANCELLED_OUTSIDE, EndReason.CANCELLED_OUTSIDE),
        ({}, None, EndReason.DRAINED),
        # an agent that gets a signal takes it for preemption
        (
            {"ending": EndReason.PREEMPTED},
            EndReason.CANCELLED_OUTSIDE,
            EndReason.CANCELLED_OUTSIDE,
        ),
        ({"ending": EndReason.PREEMPTED}, EndReason.CRASHED, EndReason.PREEMPTED),
        (
            {"ending": EndReason.PREEMPTED, "stop_asked_at": NOW},
            EndReason.CANCELLED_OUTSIDE,
            EndReason.PREEMPTED,
        ),
    ],
)
def test_why_gone(fields, slurm, reason):
    instance = an_instance(**fields)
    assert why_gone(instance, a_job(instance, JobPhase.GONE, end_reason=slurm)) is reason


def test_the_start_is_noted_even_when_the_agent_was_heard_first():
    loading = an_instance(state=InstanceState.LOADING, started_at=None)
    assert one(loading, a_view(a_job(loading, start_at=ago(7)))).started_at == ago(7)
