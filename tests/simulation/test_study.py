"""Policies over flows: bursts, quiet, walltime, lost GPUs, and what a run reports."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from hpcserve.cli.app import app
from hpcserve.config import Config
from hpcserve.config.tree import Scaling, Slurm
from hpcserve.domain.model import Model
from hpcserve.policy.scaling.registry import SCALERS
from hpcserve.sim.flow import Shape, SimBatch, SimModel
from hpcserve.sim.performance import PERFORMANCES
from hpcserve.sim.report import document, page, samples_csv
from hpcserve.sim.slurm import Series, SimPartition, Wait
from hpcserve.sim.study import Scenario, Study

CHAT = Shape(prompt=256, output=200)
HOUR_S = 3600


def a_scenario(rates, *, batches=(), hours=4, wait=None, idle=None, limit_s=4 * HOUR_S):
    """Return a 16-GPU site whose chat has one rate an hour."""
    arrivals = [round(5 * rate) for rate in rates for _ in range(HOUR_S // 5)]
    model = Model(
        name="m",
        weights="/w",
        max_num_seqs=16,
        max_instances=16,
        time_limit_s=limit_s,
        idle_release_s=600,
    )
    load = SimModel(
        model=model,
        performance=PERFORMANCES["llama-8b-a100"],
        chat=CHAT,
        arrivals=arrivals,
        batches=batches,
        engine_seqs=64,
    )
    return Scenario(
        name="a test's",
        models=(load,),
        partitions=(
            SimPartition(name="gpu", gpus=16, wait=wait or Wait()),
            SimPartition(name="spare", gpus=8, idle=idle, preemptible=True, grace_s=30),
        ),
        duration_s=hours * HOUR_S,
        step_s=5.0,
        tick_s=15.0,
        config=Config(
            slurm=Slurm(partition="gpu", opportunistic_partition="spare"),
            scaling=Scaling(ready_first_s=120),
        ),
    )


def at_hour(outcome, hour, name):
    """Return the last sample's value before an hour."""
    return [getattr(s, name) for s in outcome.samples if s.at_s <= hour * HOUR_S][-1]


def test_a_burst_makes_the_fleet_grow_and_quiet_makes_it_shrink():
    outcome = Study(a_scenario([2, 20, 2, 2]), "backpressure", 1).run()
    assert at_hour(outcome, 2, "mixed") > 2 * at_hour(outcome, 1, "mixed")
    assert at_hour(outcome, 4, "mixed") < at_hour(outcome, 2, "mixed")
    # a tenfold jump from one second to the next is nothing that anybody foresees
    assert outcome.ttft_attainment > 0.9


def test_walltimes_pass_without_a_gap():
    scenario = a_scenario([10] * 8, hours=8, limit_s=HOUR_S, wait=Wait(p50_s=60, p90_s=300))
    outcome = Study(scenario, "backpressure", 1).run()
    assert outcome.counts["submit"] > 16
    assert outcome.gap_s == 0


def test_batch_rides_on_idle_gpus_and_does_not_pay():
    batch = SimBatch(at_s=60, requests=20_000, within_s=4 * HOUR_S, shape=CHAT)
    outcome = Study(a_scenario([0], batches=(batch,)), "backpressure", 1).run()
    assert outcome.batch_attainment == 1.0
    assert outcome.batch == pytest.approx(20_000)
    assert outcome.paid_gpu_hours == 0.0


def test_batch_pays_when_nothing_is_idle_and_slack_is_gone():
    none_idle = Series(times_s=(0.0,), values=(0.0,), period_s=HOUR_S)
    batch = SimBatch(at_s=60, requests=100_000, within_s=3 * HOUR_S, shape=CHAT)
    outcome = Study(a_scenario([0], batches=(batch,), idle=none_idle), "backpressure", 1).run()
    assert outcome.batch_attainment == 1.0
    assert outcome.paid_gpu_hours > 0
    assert any("slack is gone" in note.reason for note in outcome.notes)


def test_batch_in_time_although_idle_gpus_come_and_go():
    idle = Series(times_s=(0.0, 1200.0), values=(8.0, 0.0), period_s=1800.0)
    batch = SimBatch(at_s=60, requests=250_000, within_s=3.5 * HOUR_S, shape=CHAT)
    outcome = Study(a_scenario([1] * 4, batches=(batch,), idle=idle), "backpressure", 1).run()
    assert outcome.counts["ended preempted"] > 0
    assert outcome.batch_attainment == 1.0


@pytest.mark.parametrize("policy", sorted(SCALERS))
def test_every_policy_serves_and_repeats_its_history(policy):
    batch = SimBatch(at_s=60, requests=5000, within_s=2 * HOUR_S, shape=CHAT)
    scenario = replace(a_scenario([5, 5], hours=2, batches=(batch,)), node_failures_per_hour=0.2)
    first, again = (Study(scenario, policy, 7).run() for _ in range(2))
    assert first.digest() == again.digest()
    assert first.batch == pytest.approx(5000)
    assert first.ttft_attainment > 0.4
    assert all(note.reason for note in first.notes)


def test_the_report_holds_what_the_figures_say():
    outcome = Study(a_scenario([5], hours=1), "backpressure", 1).run()
    text = page([outcome])
    assert text.count("<svg") == 6
    assert "<script" not in text
    assert f"{outcome.figures()['gpu_hours']:,}" in text
    assert document([outcome])[0]["digest"] == outcome.digest()
    assert len(samples_csv([outcome]).splitlines()) == len(outcome.samples) + 1


def test_the_command_compares_policies_and_writes_a_report(tmp_path):
    report = tmp_path / "report.html"
    arguments = ["simulate", "--workload", "gamma:2:2", "--cluster", "4:30:60", "--days", "0.05"]
    done = CliRunner().invoke(
        app, [*arguments, "--policy", "backpressure,static", "--json", "-o", str(report)]
    )
    assert done.exit_code == 0
    ours, static = json.loads(report.with_suffix(".json").read_text())
    assert ours["figures"]["gpu_hours"] < static["figures"]["gpu_hours"]
    assert report.with_suffix(".csv").exists()
    assert "<h2>static, seed 1</h2>" in report.read_text()
