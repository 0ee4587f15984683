"""The site of tests/contract/cluster/fakeslurm.py: its commands on a PATH of their own."""

import json
import os
import sys
from pathlib import Path

from hpcserve.ports.cluster import Cluster
from hpcserve.slurm.cluster import JobsReader, SlurmCluster
from hpcserve.slurm.commands import Commands
from hpcserve.slurm.squeue import Squeue
from hpcserve.slurm.tag import Tag
from tests.contract.cluster.suite import SlurmSite, WallClock

FAKESLURM = Path(__file__).with_name("fakeslurm.py")
COMMANDS = ("sbatch", "squeue", "scancel", "sinfo", "scontrol", "sacct")


class FakeSite(SlurmSite):
    """A fake Slurm of one release in a folder."""

    short_limit_s = 60
    end_s = 20.0

    def __init__(self, folder: Path, release: str) -> None:
        super().__init__(folder, sys.executable)
        self.release = release
        self.state = folder / "slurm"
        binaries = folder / "bin"
        for path in (self.state, binaries):
            path.mkdir()
        (self.state / "release").write_text(release)
        for command in COMMANDS:
            binary = binaries / command
            binary.write_text(f'#!/bin/sh\nexec {sys.executable} -S {FAKESLURM} {command} "$@"\n')
            binary.chmod(0o755)
        self.commands = Commands(
            env={
                "PATH": f"{binaries}:/usr/bin:/bin",
                "FAKESLURM_DIR": str(self.state),
                "HPCSERVE_DATABASE_URL": "postgresql://user:password@host/db",
                "SLURM_JOB_ID": "the job that hpcserve itself runs in",
                "HOME": os.environ.get("HOME", "/"),
            },
            timeout_s=10,
        )

    def reader(self, site: str) -> JobsReader:
        return Squeue(commands=self.commands, tag=Tag(site))

    def cluster(self, site: str = "test") -> Cluster:
        return SlurmCluster(
            reader=self.reader(site),
            commands=self.commands,
            submission=self.submission(site),
            clock=WallClock(),
            version=self.release,
        )

    def calls(self, command: str) -> int:
        path = self.state / "calls"
        return path.read_text().splitlines().count(command) if path.exists() else 0

    def controller_down(self) -> None:
        (self.state / "down").touch()

    def controller_up(self) -> None:
        (self.state / "down").unlink()

    def show_job(self, job_id: str) -> str:
        script = (self.state / f"{job_id}.sh").read_text()
        return script + json.dumps(json.loads((self.state / "jobs.json").read_text())[job_id])
