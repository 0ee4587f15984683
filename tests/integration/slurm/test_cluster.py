"""The cluster contract on a real Slurm, by the commands that are installed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcserve.domain.job import EndReason
from hpcserve.slurm.choose import Parts, choose, slurm_version
from hpcserve.slurm.cluster import SlurmCluster
from hpcserve.slurm.commands import Commands
from hpcserve.slurm.squeue import Squeue
from hpcserve.slurm.tag import Tag
from tests.contract.cluster.suite import SlurmContract, SlurmSite, WallClock, gone, ran, submitted
from tests.integration.slurm_cluster import JOB_START_S
from tests.integration.slurm_cluster import SlurmCluster as DevCluster

pytestmark = pytest.mark.timeout(240)

COMMANDS = ("sbatch", "squeue", "scancel", "sinfo", "scontrol", "sacct")


class RealSite(SlurmSite):
    """The dev cluster, whose commands are counted on their way."""

    #: Slurm counts minutes, looks at limits every 30 s, and kills some seconds later
    short_limit_s = 60
    end_s = 60.0
    start_s = JOB_START_S

    def __init__(self, folder: Path, dev: DevCluster) -> None:
        super().__init__(folder, sys.executable)
        self.dev = dev
        self.log = folder / "calls"
        binaries = folder / "bin"
        binaries.mkdir()
        for command in COMMANDS:
            real = shutil.which(command)
            assert real, command
            wrapper = binaries / command
            wrapper.write_text(f'#!/bin/sh\necho {command} >> {self.log}\nexec {real} "$@"\n')
            wrapper.chmod(0o755)
        path = f"{binaries}:{os.environ['PATH']}"
        secret = {"HPCSERVE_DATABASE_URL": "postgresql://user:password@host/db"}
        self.commands = Commands(env={**dev.env, **secret, "PATH": path}, timeout_s=20)

    def cluster(self, site: str = "test") -> SlurmCluster:
        return SlurmCluster(
            reader=Squeue(commands=self.commands, tag=Tag(site)),
            commands=self.commands,
            submission=self.submission(site),
            clock=WallClock(),
            version="of the dev cluster",
        )

    def calls(self, command: str) -> int:
        return self.log.read_text().splitlines().count(command) if self.log.exists() else 0

    def controller_down(self) -> None:
        self.dev.controller_down()

    def controller_up(self) -> None:
        self.dev.controller_up()

    def show_job(self, job_id: str) -> str:
        return self.dev.run("scontrol", "--details", "show", "job", job_id)


@pytest.fixture
def site(tmp_path: Path, slurm_cluster: DevCluster) -> Iterator[RealSite]:
    yield RealSite(tmp_path, slurm_cluster)
    # a test that failed half-way must not keep the nodes from the next
    subprocess.run(["scancel", "--me"], env=slurm_cluster.env, check=True, timeout=60)


class TestRealSlurm(SlurmContract):
    async def test_a_lost_node_is_no_fault_of_the_job(self, site: RealSite) -> None:
        cluster, spec = site.cluster(), site.spec()
        await submitted(cluster, spec)
        await ran(spec, site.start_s)
        (node,) = (await cluster.jobs()).jobs[spec.token].nodes
        site.dev.node_down(node)
        try:
            view = await gone(cluster, spec, site.end_s)
        finally:
            site.dev.node_up(node)
        assert view.end_reason is EndReason.NODE_FAILED

    async def test_the_machine_is_known_as_a_slurm_site(self, site: RealSite) -> None:
        parts = Parts(
            commands=site.commands,
            submission=site.submission("test"),
            clock=WallClock(),
            python=sys.executable,
            local_gpus=0,
            pyslurm_module="no_such_module",
        )
        choice = await choose("auto", parts)
        version = await slurm_version(site.commands)
        assert choice.cluster.description == f"Slurm {version} (commands)"
