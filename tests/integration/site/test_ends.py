"""Instances that end while they work: preempted, cancelled by hand, out of time, idle, drained."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.running_site import FAKE, assert_exactly_once, chat_line, running_site
from tests.integration.slurm_cluster import SlurmCluster

pytestmark = pytest.mark.timeout(240)

SLOW = {**FAKE, "engine_args": ["--itl-ms", "25"]}
NAMES = [f"line-{n}" for n in range(160)]
LINES = [chat_line(name, "m", max_tokens=40) for name in NAMES]


def test_preempted_batch_work_is_done_elsewhere(slurm_cluster: SlurmCluster) -> None:
    with running_site(slurm_cluster, {"m": {**SLOW, "partition": "opportunistic"}}) as site:
        batch = site.submit(LINES)
        site.wait_under_way(batch)
        (first,) = site.instances("ready")
        assert first["partition"] == "opportunistic"
        # somebody pays for all the GPUs
        paid = slurm_cluster.submit("sleep 8", "--partition=gpu", "--nodes=4", "--gres=gpu:2")
        gone = site.wait_ended(first["id"])
        assert gone["end_reason"] == "preempted"
        counts = site.batch(batch)["request_counts"]
        assert 0 < counts["completed"] < len(NAMES)
        site.wait_completed(batch)
        assert_exactly_once(site.results(batch), NAMES)
        (second,) = site.instances()
        assert second["job_id"] != first["job_id"]
        assert [model for model in site.status()["models"] if model["reason"]] == []
        slurm_cluster.run("scancel", paid)


def test_scancel_by_hand_costs_only_what_was_in_flight(slurm_cluster: SlurmCluster) -> None:
    with running_site(slurm_cluster, {"m": SLOW}) as site:
        batch = site.submit(LINES)
        site.wait_under_way(batch)
        (first,) = site.instances("ready")
        slurm_cluster.run("scancel", first["job_id"])
        gone = site.wait_ended(first["id"])
        assert gone["end_reason"] == "cancelled_outside"
        site.wait_completed(batch)
        assert_exactly_once(site.results(batch), NAMES)


def test_the_time_limit_hands_batch_work_back(slurm_cluster: SlurmCluster) -> None:
    # Slurm counts minutes and warns up to half a minute early
    model = {**SLOW, "time_limit_s": 60, "engine_args": ["--itl-ms", "150"]}
    with running_site(slurm_cluster, {"m": model}) as site:
        batch = site.submit(LINES[:100])
        site.wait_under_way(batch)
        (first,) = site.instances("ready")
        gone = site.wait_ended(first["id"], 100)
        assert gone["end_reason"] == "expired"
        assert site.batch(batch)["status"] == "in_progress"
        site.wait_completed(batch)
        assert_exactly_once(site.results(batch), NAMES[:100])


def test_an_idle_instance_drains_and_is_released(slurm_cluster: SlurmCluster) -> None:
    forgetful = {"scaling": {"demand_memory_s": 4.0}}
    with running_site(slurm_cluster, {"m": {**FAKE, "idle_release_s": 1.0}}, forgetful) as site:
        assert site.instances() == []
        cold = site.chat("m")
        assert (cold.status_code, cold.json()["error"]["code"]) == (503, "model_starting")
        assert float(cold.headers["retry-after"]) > 0
        site.wait("somebody is served", lambda: site.chat("m").is_success, 20)
        (instance,) = site.instances()
        gone = site.wait_ended(instance["id"])
        assert gone["end_reason"] == "scaled_in"
        events = [line["event"] for line in site.story(instance["id"])]
        assert events[-4:-1] == ["healthy", "drain", "drained"]
        assert site.jobs() == {}


def test_a_drain_loses_no_stream(slurm_cluster: SlurmCluster) -> None:
    model = {**SLOW, "min_instances": 2, "max_instances": 2}
    with running_site(slurm_cluster, {"m": model}) as site, ThreadPoolExecutor(8) as pool:
        both = site.wait_ready(2)
        begun = threading.Barrier(9, timeout=30)

        def ask() -> list[str]:
            events = site.stream("m", max_tokens=160)
            first = next(events)
            begun.wait()
            return [_text(event) for event in [first, *events]]

        streams = [pool.submit(ask) for _ in range(8)]
        begun.wait()
        # as Slurm warns before the time limit: both of them, one after the other
        for instance in both:
            slurm_cluster.run("scancel", "--signal=USR2", "--batch", instance["job_id"])
            time.sleep(0.5)
        # 160 tokens, the role before them, the reason behind them, and [DONE]
        whole = {tuple(stream.result(30)) for stream in streams}
        assert len(whole) == 1
        assert len(whole.pop()) >= 160
        for instance in both:
            assert site.wait_ended(instance["id"])["end_reason"] == "preempted"
        site.wait_ready(2)


def _text(event: str) -> str:
    """Return an event without what differs from one answer to the next."""
    if event == "[DONE]":
        return event
    body = json.loads(event)
    assert "error" not in body
    return json.dumps(body["choices"])
