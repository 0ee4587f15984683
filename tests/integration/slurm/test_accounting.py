"""A real Slurm with slurmdbd: what it remembers of our jobs, and what it then refuses."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcserve.domain.job import EndReason, JobPhase, JobView
from hpcserve.ports.cluster import Refused
from tests.contract.cluster.suite import POLL_S, gone, submitted
from tests.integration.slurm.test_cluster import RealSite
from tests.integration.slurm_cluster import running_cluster

pytestmark = pytest.mark.timeout(240)

#: sacct lags behind squeue by some seconds
LAG_S = 30.0


@pytest.fixture(scope="module")
def accounted_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSite]:
    folder: Path = tmp_path_factory.mktemp("accounting")
    with running_cluster("--nodes", "1", "--accounting") as dev:
        yield RealSite(folder, dev)


async def test_accounting_knows_how_our_jobs_ended(accounted_site: RealSite) -> None:
    site = accounted_site
    cluster = site.cluster()
    good, bad = site.spec({"exit": 0}), site.spec({"exit": 3})
    ids = {spec.token: await submitted(cluster, spec) for spec in (good, bad)}
    for spec in (good, bad):
        await gone(cluster, spec, site.start_s)
    views: dict[str, JobView] = {}
    for _ in range(int(LAG_S / POLL_S)):
        before = site.calls("sacct")
        views = dict(await cluster.accounted({**ids, "inst-never": "999999"}))
        assert site.calls("sacct") == before + 1
        if [view.phase for view in views.values()] == [JobPhase.GONE] * 2:
            break
        await asyncio.sleep(POLL_S)
    assert set(views) == {good.token, bad.token}
    assert (views[good.token].end_reason, views[good.token].exit_code) == (None, 0)
    assert (views[bad.token].end_reason, views[bad.token].exit_code) == (EndReason.CRASHED, 3)
    assert views[bad.token].job_id == ids[bad.token]


async def test_unknown_qos_and_accounts_are_refused(accounted_site: RealSite) -> None:
    site = accounted_site
    for spec, words in (
        (site.spec(qos="no-such-qos"), "Invalid qos"),
        (site.spec(account="no-such-account"), "Invalid account"),
    ):
        answer = await site.cluster().submit(spec)
        assert isinstance(answer, Refused)
        assert words in answer.message
