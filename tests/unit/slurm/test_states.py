"""Slurm's state words: all of them, and nothing else."""

import pytest

from hpcserve.domain.job import EndReason, JobPhase
from hpcserve.errors import BackendError
from hpcserve.slurm.states import STATES, phase_of

# from the programs of 22.05.8, 24.11.5 and 26.05.5: the table of base states and that of flags
BASE_STATES = [
    "PENDING",
    "RUNNING",
    "SUSPENDED",
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
    "OUT_OF_MEMORY",
]
FLAGS = [
    "LAUNCH_FAILED",
    "UPDATE_DB",
    "COMPLETING",
    "CONFIGURING",
    "POWER_UP_NODE",
    "RECONFIG_FAIL",
    "RESIZING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "SPECIAL_EXIT",
    "STOPPED",
    "REVOKED",
    "RESV_DEL_HOLD",
    "SIGNALING",
    "STAGE_OUT",
    "EXPEDITING",
]


def test_every_word_of_three_releases_is_listed() -> None:
    assert set(STATES) == {*BASE_STATES, *FLAGS}


@pytest.mark.parametrize("word", [*BASE_STATES, *FLAGS])
def test_only_what_is_gone_has_an_end_reason(word: str) -> None:
    phase, end_reason = phase_of(word)
    assert phase is JobPhase.GONE or end_reason is None
    assert (phase is JobPhase.GONE and end_reason is None) == (word == "COMPLETED")


@pytest.mark.parametrize(
    ("word", "end_reason"),
    [
        ("COMPLETED", None),
        ("FAILED", EndReason.CRASHED),
        ("CANCELLED", EndReason.CANCELLED_OUTSIDE),
        ("CANCELLED by 1000", EndReason.CANCELLED_OUTSIDE),
        ("CANCELLED+", EndReason.CANCELLED_OUTSIDE),
        ("TIMEOUT", EndReason.EXPIRED),
        ("DEADLINE", EndReason.EXPIRED),
        ("PREEMPTED", EndReason.PREEMPTED),
        ("NODE_FAIL", EndReason.NODE_FAILED),
        ("BOOT_FAIL", EndReason.NODE_FAILED),
        ("LAUNCH_FAILED", EndReason.NODE_FAILED),
        ("RECONFIG_FAIL", EndReason.NODE_FAILED),
        ("OUT_OF_MEMORY", EndReason.OUT_OF_MEMORY),
        ("REVOKED", EndReason.CANCELLED_OUTSIDE),
    ],
)
def test_how_a_job_ended(word: str, end_reason: EndReason | None) -> None:
    assert phase_of(word) == (JobPhase.GONE, end_reason)


@pytest.mark.parametrize("word", ["COMPLETED", "FAILED", "PREEMPTED"])
def test_an_end_in_the_grace_time_is_the_preemptions_doing(word: str) -> None:
    assert phase_of(word, preempted=True) == (JobPhase.GONE, EndReason.PREEMPTED)


@pytest.mark.parametrize("word", ["NODE_FAIL", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY"])
def test_what_ended_a_job_before_the_preemption_did_is_kept(word: str) -> None:
    assert phase_of(word, preempted=True) == phase_of(word)


def test_a_preempted_job_in_its_grace_time_still_runs() -> None:
    assert phase_of("RUNNING", preempted=True) == (JobPhase.HELD, None)


def test_a_job_that_could_never_run_was_refused() -> None:
    assert phase_of("FAILED", reason="BadConstraints") == (JobPhase.GONE, EndReason.REJECTED)
    assert phase_of("PENDING", reason="BadConstraints") == (JobPhase.PENDING, None)


@pytest.mark.parametrize("word", ["HIBERNATING", "", "running"])
def test_an_unknown_word_is_an_error_that_names_it(word: str) -> None:
    with pytest.raises(BackendError, match=f"job state '{word}'"):
        phase_of(word)
