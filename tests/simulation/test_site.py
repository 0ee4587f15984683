"""The simulated site: the same seed is the same history, and checkers see what is wrong."""

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from hpcserve.domain.batch import BatchState
from hpcserve.domain.job import EndReason
from hpcserve.ledger import open_ledger
from hpcserve.sim import checkers
from hpcserve.sim.faults import Faults
from hpcserve.sim.flow import SimBatch
from hpcserve.sim.loop import DeadlockError, run
from hpcserve.sim.site import BrokenError, simulate
from hpcserve.sim.slurm import SimPartition, SlurmModel
from hpcserve.sim.work import SimWork
from tests.simulation.sites import SHAPE, a_site

ROOT = Path(__file__).parents[2]
DIGEST = (
    "import logging; logging.disable(50)\n"
    "from hpcserve.sim.site import simulate\n"
    "from tests.simulation.sites import a_site\n"
    "print([simulate(a_site(seed), seed).digest for seed in (1, 2, 3)])\n"
)


def test_a_seed_makes_the_same_history_under_two_hash_seeds():
    histories = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(histories) == 1


def test_another_seed_makes_another_history():
    assert simulate(a_site(1), 1).digest != simulate(a_site(1), 2).digest


def test_without_faults_everything_is_answered():
    outcome = simulate(a_site(0, faults=Faults(), policy="backpressure"), 5)
    (batch,) = outcome.batches
    assert (batch.state, batch.counts.completed) == (BatchState.COMPLETED, batch.counts.total)
    assert outcome.counts.get("fenced", 0) == 0


def test_hand_over_before_the_walltime_fails_no_request():
    scenario = a_site(
        1,
        faults=Faults(),
        policy="backpressure",
        chat_rate=0.2,
        chat_until_s=3000.0,
        until_s=3600.0,
        batches=(),
    )
    outcome = simulate(scenario, 1)
    assert outcome.counts["started"] > 2
    late = outcome.requests.get("refused", 0)
    # the first ones find nobody, since the site begins empty
    assert late <= 0.02 * outcome.requests["answered"]


def test_work_that_comes_when_nothing_may_run_expires_and_is_reported():
    scenario = a_site(
        0, partitions=(SimPartition(name="gpu", gpus=0),), faults=Faults(), chat_rate=0.0
    )
    (batch,) = simulate(scenario, 1).batches
    assert (batch.state, batch.counts.expired) == (BatchState.EXPIRED, batch.counts.total)


def test_a_batch_that_cannot_end_is_found_by_the_liveness_checker():
    batch = SimBatch(at_s=30, requests=5, within_s=99_999, shape=SHAPE)
    scenario = a_site(
        0,
        partitions=(SimPartition(name="gpu", gpus=0),),
        faults=Faults(),
        chat_rate=0.0,
        batches=(batch,),
    )
    with pytest.raises(BrokenError, match=r"seed 1, second .*batch-0 is still in_progress"):
        simulate(scenario, 1)


def a_slurm(**fields):
    return SlurmModel([SimPartition(name="gpu", gpus=4, **fields)], random.Random(1))


def look(slurm, answered=None, beyond=()):
    """Return what the safety checkers say of a site with an empty ledger."""
    ledger = open_ledger("memory:")
    scenario = a_site()
    work = SimWork(ledger=ledger, clock=None, settings=scenario.config.batching)
    work.answered.update(answered or {})
    work.beyond.extend(beyond)
    return asyncio.run(
        ledger.transact(
            lambda tx: checkers.safety(
                tx, slurm=slurm, work=work, models={}, config=scenario.config, now_s=10.0
            )
        )
    )


def test_a_gpu_that_the_ledger_does_not_know_is_found():
    slurm = a_slurm()
    slurm.submit(0.0, token="nobody", partition=None, gpus=1, limit_s=600)
    slurm.advance(1.0)
    assert any("which the ledger does not know" in found for found in look(slurm))


def test_two_jobs_of_one_token_are_found():
    slurm = a_slurm()
    for _ in range(2):
        slurm.submit(0.0, token="twice", partition=None, gpus=1, limit_s=600)
    assert look(slurm) == ("2 jobs live for twice",)


def test_a_doubled_answer_is_found():
    assert look(a_slurm(), {(1, 7): 2}) == ("line 7 of batch 1 was answered 2 times",)


def test_a_lease_beyond_its_allocation_is_found():
    assert look(a_slurm(), beyond=["lease 3 of inst-1"]) == (
        "lease 3 of inst-1 begins beyond its allocation",
    )


def test_a_loop_that_would_wait_for_ever_says_so():
    async def wait():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(DeadlockError, match="these wait: Task-"):
        run(wait())


def test_a_day_passes_at_once():
    async def day():
        await asyncio.sleep(86_400)
        return asyncio.get_running_loop().time()

    assert run(day()) == 86_400


def test_a_preempted_job_ends_after_its_grace():
    slurm = a_slurm(preemptible=True, grace_s=30.0)
    job = slurm.submit(0.0, token="t", partition=None, gpus=1, limit_s=600)
    slurm.advance(0.0)
    slurm.preempt(job, 10.0)
    assert slurm.advance(39.0).ended == []
    assert [j.end_reason for j in slurm.advance(40.0).ended] == [EndReason.PREEMPTED]
