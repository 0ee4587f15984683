"""`kill -9` of `hpcserve up`: the next one finds the same Slurm job and asks for no second."""

from __future__ import annotations

import pytest

from tests.integration.running_site import (
    FAKE,
    SqueueWatch,
    assert_exactly_once,
    chat_line,
    running_site,
)
from tests.integration.slurm_cluster import SlurmCluster

pytestmark = pytest.mark.timeout(180)

KEPT = {**FAKE, "min_instances": 1}


def test_killed_while_the_job_is_queued(slurm_cluster: SlurmCluster) -> None:
    blocker = slurm_cluster.submit("sleep 120", "--nodes=4", "--gres=gpu:2", "--time=3")
    try:
        slurm_cluster.wait_for_state(blocker, "RUNNING")
        with running_site(slurm_cluster, {"m": KEPT}) as site, SqueueWatch(site) as watch:
            site.wait("it is queued", lambda: site.instances("queued"), 20)
            (before,) = site.instances()
            site.kill()
            site.start()
            assert [i["id"] for i in site.instances()] == [before["id"]]
            slurm_cluster.run("scancel", blocker)
            (after,) = site.wait_ready()
            assert site.chat("m").status_code == 200
        assert (after["id"], after["job_id"]) == (before["id"], before["job_id"])
        assert watch.seen == {before["job_id"]}
        assert watch.looks > 5
    finally:
        slurm_cluster.run("scancel", blocker)


def test_killed_between_the_intent_and_its_answer(slurm_cluster: SlurmCluster) -> None:
    # sbatch has done its work, but its answer never comes: the controller dies waiting for it
    with running_site(slurm_cluster, {"m": KEPT}, commands=()) as site, SqueueWatch(site) as watch:
        site.wrap(
            "sbatch", '[ "$1" = --parsable ] || exec "$REAL" "$@"; "$REAL" "$@"; exec sleep 60'
        )
        site.start()
        site.wait("the job is there", site.jobs, 20)
        (before,) = site.instances()
        assert "submitted" not in [line["event"] for line in site.story(before["id"])]
        site.kill()
        site.start()
        (after,) = site.wait_ready()
        assert after["id"] == before["id"]
    assert watch.seen == {after["job_id"]}


def test_killed_while_the_job_runs(slurm_cluster: SlurmCluster) -> None:
    model = {**KEPT, "engine_args": ["--itl-ms", "20"]}
    names = [f"line-{n}" for n in range(200)]
    with running_site(slurm_cluster, {"m": model}) as site, SqueueWatch(site) as watch:
        (before,) = site.wait_ready()
        batch = site.submit(chat_line(name, "m", max_tokens=20) for name in names)
        site.wait_under_way(batch)
        site.kill()
        site.start()
        assert site.wait_completed(batch)["request_counts"]["completed"] == len(names)
        assert_exactly_once(site.results(batch), names)
        (after,) = site.wait_ready()
        assert site.chat("m").status_code == 200
    assert (after["id"], after["job_id"]) == (before["id"], before["job_id"])
    assert watch.seen == {before["job_id"]}
