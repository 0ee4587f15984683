"""The parts of the simulator that are plain functions."""

import random
import statistics

import pytest

from hpcserve.errors import RequestError
from hpcserve.sim.arrivals import binned, gamma_counts
from hpcserve.sim.performance import PERFORMANCES, fit
from hpcserve.sim.scenario import Asked, parse_batch, parse_cluster, scenario_of
from hpcserve.sim.slurm import Series, SimPartition, SlurmModel, Wait
from hpcserve.sim.svg import plot


def test_a_fit_returns_the_line_that_made_the_measurements():
    like = PERFORMANCES["llama-70b-a100"]
    fitted = fit(
        like,
        prefills=[(n, 0.03 + 0.0002 * n) for n in (128, 512, 2048)],
        steps=[(n, 0.05 + 0.0003 * n) for n in (1, 8, 64)],
    )
    assert fitted.prefill_s(1000) == pytest.approx(0.23)
    assert fitted.itl_s(32, 0) == pytest.approx(0.0596)
    assert fitted.kv_tokens == like.kv_tokens


@pytest.mark.parametrize("cv", [1.0, 4.0])
def test_arrivals_have_the_rate_and_the_burstiness_that_were_asked_for(cv):
    counts = gamma_counts(random.Random(1), [(40_000, 5.0)], cv, 100.0)
    assert statistics.fmean(counts) == pytest.approx(500, rel=0.06)
    # counts of a renewal process in long windows vary by cv * sqrt(mean)
    assert statistics.pstdev(counts) == pytest.approx(cv * 500**0.5, rel=0.2)


def test_a_rate_that_doubles_doubles_the_arrivals():
    counts = gamma_counts(random.Random(2), [(20_000, 2.0), (20_000, 4.0)], 1.0, 10.0)
    half = len(counts) // 2
    assert sum(counts[half:]) / sum(counts[:half]) == pytest.approx(2, rel=0.05)


def test_a_short_trace_is_repeated():
    assert binned([0.0, 1.5, 2.0], 6.0, 1.0) == [1, 1, 2, 1, 2, 1]


def test_waits_have_the_quantiles_that_were_asked_for():
    rng, wait = random.Random(3), Wait(p50_s=360, p90_s=3600)
    drawn = sorted(wait.draw(rng, wait.limit_s) for _ in range(20_000))
    assert drawn[10_000] == pytest.approx(360, rel=0.1)
    assert drawn[18_000] == pytest.approx(3600, rel=0.1)


def test_a_shorter_job_waits_less():
    wait = Wait(p50_s=360, p90_s=3600)
    long = [wait.draw(random.Random(n), 14_400) for n in range(50)]
    short = [wait.draw(random.Random(n), 3600) for n in range(50)]
    assert all(a == pytest.approx(b / 4) for a, b in zip(short, long, strict=True))


def test_when_others_want_their_gpus_the_youngest_are_preempted():
    idle = Series(times_s=(0.0, 100.0), values=(4.0, 1.0), period_s=1000.0)
    spare = SimPartition(name="spare", gpus=4, idle=idle, preemptible=True, grace_s=10.0)
    slurm = SlurmModel([spare], random.Random(1))
    for n in range(3):
        slurm.submit(n, token=f"t{n}", partition=None, gpus=1, limit_s=900)
        slurm.advance(n)
    assert [job.token for job in slurm.advance(100).warned] == ["t2", "t1"]
    assert slurm.advance(105).warned == []
    assert {job.token for job in slurm.advance(110).ended} == {"t1", "t2"}
    assert slurm.held == {"spare": 1}


@pytest.mark.parametrize(
    ("limit_s", "gpus", "partition", "why"),
    [
        (999_999_999, 1, None, "time limit"),
        (60, 99, None, "not available"),
        (60, 1, "nowhere", "invalid partition specified: nowhere"),
    ],
)
def test_slurm_refuses_what_it_cannot_run(limit_s, gpus, partition, why):
    slurm = SlurmModel([SimPartition(name="gpu", gpus=4)], random.Random(1))
    answer = slurm.submit(0, token="t", partition=partition, gpus=gpus, limit_s=limit_s)
    assert why in answer


@pytest.mark.parametrize("text", ["", "x", "4:5", "4:60:30", "0", "4:a:b"])
def test_an_impossible_cluster_is_one_sentence(text):
    with pytest.raises(RequestError, match=r"^--cluster: .*\.$"):
        parse_cluster(text)


@pytest.mark.parametrize("text", ["", "many", "100", "100:0", "0:6", "10:6:24", "1:2:3:4"])
def test_an_impossible_batch_is_one_sentence(text):
    with pytest.raises(RequestError, match=r"^--batch: .*\.$"):
        parse_batch(text, 1.0)


def test_a_batch_comes_each_day_at_its_hour():
    assert [b.at_s for b in parse_batch("10:6:9", 2.0)] == [9 * 3600, 33 * 3600]


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (Asked(workload="gamma:0", cluster="4"), "--workload"),
        (Asked(workload="gamma:1:x", cluster="4"), "--workload"),
        (Asked(workload="gamma:1", cluster="4", engine="gpt"), "--engine: 'gpt' is not known"),
        (Asked(workload="gamma:1", cluster="4", days=0), "--days"),
        (Asked(workload="gamma:1", cluster="4", gpus_per_instance=8), "does not fit"),
    ],
)
def test_a_mistake_is_one_sentence(asked, why):
    with pytest.raises(RequestError) as caught:
        scenario_of(asked, 1)
    assert why in caught.value.message
    assert caught.value.message.endswith(".")


def test_a_plot_escapes_what_it_is_told():
    svg = plot("<b>", "GPUs", [("a&b", [(0.0, 1.0), (3600.0, 2.0)])], hours=1.0)
    assert "<b>" not in svg
    assert "a&amp;b" in svg
