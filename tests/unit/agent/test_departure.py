"""Why and how an agent ends."""

from __future__ import annotations

import signal
from datetime import timedelta

import pytest

from hpcserve.agent import departure
from hpcserve.agent.allocation import Allocation
from hpcserve.agent.departure import Departure
from hpcserve.config.tree import Agent as AgentSettings
from hpcserve.domain.job import EndReason
from hpcserve.ports.control import Ending
from tests.builders import NOW

SETTINGS = AgentSettings(drain_s=90, term_s=25, stop_s=10)


def allocation(left_s: float, **env: str) -> Allocation:
    end = NOW + timedelta(seconds=left_s)
    return Allocation.from_environment(
        {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(int(end.timestamp())), **env},
        hostname="n1",
        now=NOW,
        time_limit_s=3600,
        notice_s=120,
    )


def on(signum: int, left_s: float, current: Departure | None = None, **env: str) -> Departure:
    return departure.on_signal(
        signum,
        allocation=allocation(left_s, **env),
        current=current,
        settings=SETTINGS,
        now=NOW,
        now_s=1000.0,
    )


def test_the_environment_of_slurm_and_of_submitits_local_executor() -> None:
    slurm = allocation(60, SLURMD_NODENAME="node7")
    assert (slurm.job_id, slurm.node, slurm.hostname) == ("7", "node7", "n1")
    assert (slurm.ends_at, slurm.is_certain) == (NOW + timedelta(seconds=60), True)
    outer = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "node7", "SLURM_JOB_END_TIME": "1"}
    own = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "4242"}
    local = Allocation.from_environment(
        {**outer, **own}, hostname="n1", now=NOW, time_limit_s=600, notice_s=9
    )
    assert (local.job_id, local.node) == ("4242", "n1")
    assert (local.ends_at, local.is_certain) == (NOW + timedelta(seconds=600), False)


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
@pytest.mark.parametrize(
    ("left_s", "reason"),
    [(20, EndReason.EXPIRED), (209, EndReason.EXPIRED), (211, EndReason.PREEMPTED)],
)
def test_a_signal_near_the_time_limit_is_its_warning(
    signum: int, left_s: float, reason: EndReason
) -> None:
    assert on(signum, left_s).ending.reason is reason


def test_batch_lines_may_finish_only_when_the_end_is_known() -> None:
    assert on(signal.SIGUSR1, 120).finishes_batch
    assert not on(signal.SIGUSR1, 120, SLURM_JOB_END_TIME="").finishes_batch
    assert not on(signal.SIGUSR1, 3000).finishes_batch
    assert not on(signal.SIGTERM, 120).finishes_batch


@pytest.mark.parametrize(("left_s", "until_s"), [(120, 1090), (60, 1050), (5, 1000)])
def test_a_warning_leaves_time_up_to_the_end_but_for_the_engines_own(
    left_s: float, until_s: float
) -> None:
    assert on(signal.SIGUSR1, left_s).until_s == until_s


def test_sigterm_leaves_little_and_the_second_nothing() -> None:
    warned = on(signal.SIGUSR1, 3000)
    assert warned.until_s == 1090
    termed = warned.and_then(on(signal.SIGTERM, 3000, warned))
    assert (termed.until_s, termed.ending) == (1025, warned.ending)
    assert termed.and_then(on(signal.SIGTERM, 3000, termed)).until_s == 1000


def test_what_comes_later_never_lengthens_it() -> None:
    termed = on(signal.SIGTERM, 3000)
    both = termed.and_then(departure.on_drain_order(SETTINGS, 1000))
    assert (both.until_s, both.finishes_batch) == (1025, False)
    assert both.ending.reason is EndReason.PREEMPTED


def test_a_fault_replaces_a_harmless_reason() -> None:
    fault = Ending(reason=EndReason.CRASHED, message="died")
    drained = departure.on_drain_order(SETTINGS, 1000)
    assert drained.and_then(departure.on_engine_end(fault, 1010)).ending is fault


def test_exit_is_silent_and_at_once() -> None:
    gone = departure.on_drain_order(SETTINGS, 1000).and_then(departure.on_exit_order(1001))
    assert gone.is_silent
    assert gone.until_s == 1001
