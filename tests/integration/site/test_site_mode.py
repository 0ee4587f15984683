"""Site mode: PostgreSQL as the ledger, controller and gateway as processes of their own."""

from __future__ import annotations

import signal

import pytest

from tests.contract.ledger.postgres_server import running_server
from tests.integration.running_site import (
    FAKE,
    SqueueWatch,
    assert_exactly_once,
    chat_line,
    running_site,
)
from tests.integration.slurm_cluster import SlurmCluster

pytestmark = pytest.mark.timeout(180)


def test_postgresql_crashes_under_a_running_site(slurm_cluster: SlurmCluster) -> None:
    names = [f"line-{n}" for n in range(150)]
    model = {**FAKE, "min_instances": 1, "engine_args": ["--itl-ms", "20"]}
    with running_server() as postgres:
        ledger = {"ledger": {"url": postgres.database("site")}}
        with (
            running_site(
                slurm_cluster, {"m": model}, ledger, commands=("controller", "gateway")
            ) as site,
            SqueueWatch(site) as watch,
        ):
            (before,) = site.wait_ready()
            assert site.chat("m").status_code == 200
            batch = site.submit(chat_line(name, "m", max_tokens=30) for name in names)
            site.wait_under_way(batch)
            postgres.stop(signal.SIGQUIT)
            # what needs no ledger goes on: the key and the instance are known
            for _ in range(10):
                assert site.chat("m").status_code == 200
            postgres.start()
            site.wait_completed(batch)
            assert_exactly_once(site.results(batch), names)
            assert [p.poll() for p in site.processes.values()] == [None, None]
            (after,) = site.wait_ready()
            assert after["job_id"] == before["job_id"]
    assert watch.seen == {before["job_id"]}
