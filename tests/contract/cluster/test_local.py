"""The cluster contract where there is no Slurm: processes of this machine."""

import asyncio
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from hpcserve.domain.job import EndReason, JobPhase
from hpcserve.errors import BackendError
from hpcserve.slurm.commands import Commands
from hpcserve.slurm.local import LocalCluster
from hpcserve.slurm.record import load, save
from tests.contract.cluster.suite import (
    ClusterContract,
    Site,
    WallClock,
    gone,
    got,
    ran,
    submitted,
)


class LocalSite(Site):
    """This machine, said to have two GPUs."""

    def cluster(self, site: str = "test") -> LocalCluster:
        return LocalCluster(
            commands=Commands(env=os.environ, timeout_s=20),
            submission=self.submission(site),
            clock=WallClock(),
            supervisor_python=sys.executable,
            gpus=2,
            kill_wait_s=1,
        )


@pytest.fixture
def site(tmp_path: Path) -> LocalSite:
    return LocalSite(tmp_path, sys.executable)


class TestLocal(ClusterContract):
    async def test_a_job_that_ignores_term_is_killed(self, site: LocalSite) -> None:
        cluster, spec = site.cluster(), site.spec({"leaves_on": []})
        job_id = await submitted(cluster, spec)
        await ran(spec, site.start_s)
        await cluster.cancel([job_id])
        view = await gone(cluster, spec, site.end_s)
        assert got(spec, "SIGTERM")
        assert (view.end_reason, view.exit_code) == (EndReason.CANCELLED_OUTSIDE, -signal.SIGKILL)

    async def test_a_job_killed_by_anyone_else_has_crashed(self, site: LocalSite) -> None:
        cluster, spec = site.cluster(), site.spec()
        await submitted(cluster, spec)
        os.kill((await ran(spec, site.start_s))["pid"], signal.SIGKILL)
        view = await gone(cluster, spec, site.end_s)
        assert (view.end_reason, view.reason) == (EndReason.CRASHED, "SIGKILL")

    async def test_a_reused_pid_is_not_taken_for_the_job(self, site: LocalSite) -> None:
        cluster, spec = site.cluster(), site.spec({"exit": 0})
        await submitted(cluster, spec)
        await gone(cluster, spec, site.start_s)
        folder = site.folder / "jobs" / spec.token
        record = load(folder)
        assert record is not None
        # as after a crash of this machine: the record says RUNNING and another has the pid
        other = replace(record.process, pid=os.getpid())
        save(replace(record, state="RUNNING", exit_code=None, process=other), folder)
        view = (await site.cluster().jobs()).jobs[spec.token]
        assert (view.phase, view.end_reason) == (JobPhase.GONE, EndReason.NODE_FAILED)
        # and it is left alone
        await site.cluster().cancel([str(os.getpid())])

    def test_a_submission_returns_at_once_on_uvloop_too(self, site: LocalSite) -> None:
        cluster, spec = site.cluster(), site.spec()

        async def submit_and_cancel() -> float:
            start = time.monotonic()
            job_id = await submitted(cluster, spec)
            took_s = time.monotonic() - start
            await cluster.cancel([job_id])
            await gone(cluster, spec, site.end_s)
            return took_s

        # the job runs on; a pipe of ours that it inherited would hold us for as long
        assert uvloop.run(submit_and_cancel()) < site.start_s / 2

    async def test_a_record_that_cannot_be_read_is_named(self, site: LocalSite) -> None:
        folder = site.folder / "jobs" / "inst-1"
        folder.mkdir(parents=True)
        (folder / "local.json").write_text("{}")
        with pytest.raises(BackendError, match=r"inst-1/local\.json cannot be read"):
            await site.cluster().jobs()

    async def test_a_folder_that_cannot_be_read_or_written_is_named(self, site: LocalSite) -> None:
        spec = site.spec()
        (site.folder / "jobs").write_text("in the way")
        with pytest.raises(BackendError, match=r"records of local jobs in .*/jobs cannot be read"):
            await site.cluster().submit(spec)
        with pytest.raises(BackendError, match=r"cannot be written to .*/jobs/inst-"):
            site.submission("test").write(spec, "")

    async def test_busy_gpus_are_to_be_tried_again(self, site: LocalSite) -> None:
        cluster = site.cluster()
        first, second = site.spec(), site.spec()
        ids = [await submitted(cluster, first), await submitted(cluster, second)]
        gpus = {(await ran(spec, site.start_s))["gpus"] for spec in (first, second)}
        assert gpus == {"0", "1"}
        with pytest.raises(BackendError, match="0 of 2 are free") as caught:
            await cluster.submit(site.spec())
        assert caught.value.retryable
        await cluster.cancel(ids)
        await asyncio.gather(*(gone(cluster, spec, site.end_s) for spec in (first, second)))

    async def test_an_old_end_is_left_to_accounting(
        self, site: LocalSite, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hpcserve.slurm.local.LISTED_S", 0.0)
        cluster, spec = site.cluster(), site.spec({"exit": 3})
        job_id = await submitted(cluster, spec)
        await ran(spec, site.start_s)
        for _ in range(100):
            view = (await cluster.accounted({spec.token: job_id}))[spec.token]
            if view.phase is JobPhase.GONE:
                break
            await asyncio.sleep(0.05)
        assert view.end_reason is EndReason.CRASHED
        assert (await cluster.jobs()).jobs == {}
