"""Engines that die: the right end reason, a replacement after a pause, and an end to trying."""

from __future__ import annotations

from datetime import datetime

import pytest

from tests.integration.running_site import (
    FAKE,
    RunningSite,
    assert_exactly_once,
    chat_line,
    running_site,
)
from tests.integration.slurm_cluster import SlurmCluster

pytestmark = pytest.mark.timeout(180)


def test_a_killed_engine_is_replaced_after_a_pause(slurm_cluster: SlurmCluster) -> None:
    model = {**FAKE, "engine_args": ["--itl-ms", "20"]}
    names = [f"line-{n}" for n in range(200)]
    pause = {"controller": {"backoff_first_s": 3.0}}
    with running_site(slurm_cluster, {"m": model}, pause) as site:
        batch = site.submit(chat_line(name, "m", max_tokens=20) for name in names)
        site.wait_under_way(batch)
        (first,) = site.instances("ready")
        site.engine(first["id"]).kill()
        gone = site.wait_ended(first["id"])
        assert gone["end_reason"] == "crashed"
        assert "signal 9" in gone["message"]
        assert gone["log_path"] in gone["message"]
        site.wait("the pause is told", lambda: "tried again in" in site.cli("status"), 3)
        site.wait_completed(batch)
        assert_exactly_once(site.results(batch), names)
        (second,) = site.instances()
    assert second["job_id"] != first["job_id"]
    assert _seconds(gone["ended_at"], second["requested_at"]) >= 3.0


def test_a_model_that_never_starts_is_given_up_until_it_is_retried(
    slurm_cluster: SlurmCluster,
) -> None:
    broken = {**FAKE, "min_instances": 1, "engine_args": ["--no-such-flag"]}
    with running_site(
        slurm_cluster, {"broken": broken}, {"controller": {"failures_max": 2}}
    ) as site:
        _wait_given_up(site)
        said = site.cli("status")
        (ended, first) = site.status()["ended"]
        assert {ended["end_reason"], first["end_reason"]} == {"load_failed"}
        assert "GIVEN UP" in said
        assert ended["log_path"] in said
        # the last lines of its log
        assert "unrecognized arguments: --no-such-flag" in said
        assert "hpcserve admin model retry broken" in said
        assert site.json("status")["models"][0]["given_up"] is True
        assert site.instances() == []
        site.cli("admin", "model", "retry", "broken")
        site.wait("it is tried again", lambda: len(site.status()["ended"]) == 4, 30)
        _wait_given_up(site)


def _wait_given_up(site: RunningSite) -> None:
    site.wait("given up", lambda: site.status()["models"][0].get("given_up"), 40)


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
