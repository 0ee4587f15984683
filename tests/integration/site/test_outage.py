"""slurmctld goes away for a while: nothing is cancelled, chat goes on, and it is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest

from tests.integration.running_site import FAKE, assert_exactly_once, chat_line, running_site
from tests.integration.slurm_cluster import SlurmCluster

pytestmark = pytest.mark.timeout(180)

#: Slurm's commands block for ten seconds in an outage; the site is told to wait less
IMPATIENT = {"slurm": {"command_timeout_s": 2.0}, "scaling": {"batch_requests_per_instance": 50}}


@contextmanager
def outage(cluster: SlurmCluster) -> Iterator[None]:
    """Stop slurmctld for the time of a block."""
    cluster.controller_down()
    try:
        yield
    finally:
        cluster.controller_up()


def test_an_outage_costs_nothing(slurm_cluster: SlurmCluster) -> None:
    model = {**FAKE, "min_instances": 1, "max_instances": 2, "engine_args": ["--itl-ms", "10"]}
    names = [f"line-{n}" for n in range(100)]
    with running_site(slurm_cluster, {"m": model}, IMPATIENT) as site:
        (before,) = site.wait_ready()
        assert site.status()["controller"]["scheduler_down_since"] is None
        with outage(slurm_cluster):
            site.wait(
                "the outage is told",
                lambda: site.status()["controller"].get("scheduler_down_since"),
                20,
            )
            assert "nothing is cancelled meanwhile" in site.cli("status")
            # work comes that wants another instance, and cannot have it now
            batch = site.submit(chat_line(name, "m", max_tokens=20) for name in names)
            for _ in range(20):
                answer = site.chat("m", max_tokens=20)
                assert answer.status_code == 200
                assert answer.json()["usage"]["completion_tokens"] == 20
            site.wait_completed(batch)
            assert [i["id"] for i in site.instances()] == [before["id"]]
        site.wait(
            "the end of it is told",
            lambda: site.status()["controller"]["scheduler_down_since"] is None,
            20,
        )
        assert_exactly_once(site.results(batch), names)
        (after,) = site.instances()
        assert (after["id"], after["job_id"]) == (before["id"], before["job_id"])
        assert site.status()["ended"] == []
        assert list(site.jobs()) == [before["job_id"]]
        site.chat("m")


def test_a_site_starts_while_slurm_is_away(slurm_cluster: SlurmCluster) -> None:
    with running_site(
        slurm_cluster, {"m": {**FAKE, "min_instances": 1}}, IMPATIENT, commands=()
    ) as site:
        with outage(slurm_cluster):
            site.start()
            assert "No controller has reported yet" in site.cli("status")
        site.wait_ready()


def test_one_squeue_a_tick_at_most(slurm_cluster: SlurmCluster) -> None:
    ticks = {"controller": {"tick_s": 0.5, "tick_min_s": 0.5}}
    with running_site(
        slurm_cluster, {"m": {**FAKE, "min_instances": 1}}, ticks, commands=()
    ) as site:
        calls = site.folder / "calls"
        for command in ("squeue", "sacct", "scontrol", "sinfo"):
            site.wrap(command, f'echo "$(date +%s.%N) {command}" >> {calls}; exec "$REAL" "$@"')
        site.start()
        site.wait_ready()
        # each heartbeat, request and batch wakes the controller; it must not ask more for that
        batch = site.submit(chat_line(f"line-{n}", "m") for n in range(50))
        for _ in range(30):
            site.chat("m")
        site.wait_completed(batch)
        said = [line.split() for line in calls.read_text().splitlines()]
        asked = [float(at) for at, command in said if command == "squeue"]
        assert len(asked) >= 5
        # a tick begins half a second after the last one ended, less what starting a process varies
        assert min(b - a for a, b in pairwise(asked)) > 0.4
        assert [command for _, command in said].count("sinfo") <= 1
