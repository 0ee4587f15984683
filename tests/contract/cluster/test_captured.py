"""What three releases of Slurm print is read as the same facts (tests/data/slurm)."""

from datetime import timedelta
from pathlib import Path

import pytest

from hpcserve.domain.job import EndReason, JobPhase
from hpcserve.slurm.partitions import parse_nodes, parse_partitions
from hpcserve.slurm.squeue import parse
from hpcserve.slurm.tag import Tag

DATA = Path(__file__).parents[2] / "data" / "slurm"
RELEASES = ("22.05", "24.11", "26.05")

ENDS = {
    "fails": (EndReason.CRASHED, 3),
    "killed": (EndReason.CRASHED, -9),
    "ignores": (EndReason.PREEMPTED, -15),
}


@pytest.mark.parametrize("release", RELEASES)
def test_jobs(release: str) -> None:
    jobs = parse((DATA / f"squeue_{release}.txt").read_text(), Tag("lab"))
    gone = {token for token, job in jobs.items() if job.phase is JobPhase.GONE}
    assert gone == {*ENDS, "cancelled", "refused", "exits0", "exits3"}
    assert {token: (jobs[token].end_reason, jobs[token].exit_code) for token in ENDS} == ENDS
    assert jobs["cancelled"].end_reason is EndReason.CANCELLED_OUTSIDE
    # its shell had the signal, or its child had and the shell said so
    assert jobs["cancelled"].exit_code in {-15, 128 + 15}
    assert jobs["refused"].end_reason is EndReason.REJECTED
    # 22.05 calls them COMPLETED and FAILED, later releases PREEMPTED
    assert jobs["exits0"].end_reason is EndReason.PREEMPTED
    assert jobs["exits3"].end_reason is EndReason.PREEMPTED


@pytest.mark.parametrize("release", RELEASES)
def test_jobs_that_are_not_over(release: str) -> None:
    jobs = parse((DATA / f"squeue_{release}.txt").read_text(), Tag("lab"))
    paid, behind, queued = jobs["paid"], jobs["behind"], jobs["queued"]
    assert (paid.phase, paid.nodes) == (JobPhase.HELD, ("gpu01", "gpu02", "gpu03", "gpu04"))
    assert paid.start_at is not None
    assert paid.end_at == paid.start_at + timedelta(minutes=10)
    assert (behind.phase, behind.reason) == (JobPhase.PENDING, "Resources")
    # it is expected to start when the one before it ends, and nothing is known of its end
    assert (behind.start_at, behind.end_at) == (paid.end_at, None)
    assert (queued.reason, queued.start_at) == ("JobHeldUser", None)


def test_jobs_of_another_site_are_left_out() -> None:
    assert parse((DATA / "squeue_22.05.txt").read_text(), Tag("elsewhere")) == {}


@pytest.mark.parametrize("release", RELEASES)
def test_partitions(release: str) -> None:
    nodes = parse_nodes((DATA / f"nodes_{release}.txt").read_text())
    rules = (DATA / f"partitions_{release}.txt").read_text()
    gpu, scavenger, preempt = parse_partitions(rules, nodes)
    assert (gpu.name, gpu.is_default, gpu.is_up) == ("gpu", True, True)
    assert (gpu.max_time_s, gpu.priority_tier, gpu.preempt_mode) == (86_400, 10, "off")
    assert (scavenger.preempt_mode, scavenger.grace_s, scavenger.is_default) == (
        "requeue",
        5,
        False,
    )
    assert (preempt.preempt_mode, preempt.priority_tier) == ("cancel", 1)
    for partition in (gpu, scavenger, preempt):
        assert (partition.gpus_total, partition.gpus_idle) == (8, 3)
        assert (partition.nodes_total, partition.nodes_idle) == (4, 1)
