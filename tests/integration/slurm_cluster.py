"""A real Slurm cluster of its own for the tests of one session, by slurm/devcluster.

Rules: it is bounded in time, so that a killed test run leaves nothing behind; its path is short,
because Slurm's sockets live in it; tests share it, so each cancels its own jobs and brings back
what it took down.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

DEVCLUSTER = Path(__file__).parents[2] / "slurm" / "devcluster"
LIFE_S = 1560
"""The cluster ends itself then: no tier of tests takes longer."""

JOB_START_S = 120.0
"""A busy machine may take that long to start a job; usually it is one second."""

POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmCluster:
    """A running dev cluster."""

    dir: Path
    conf: Path
    facts: dict[str, Any]
    as_user: tuple[str, ...] = ()

    @property
    def env(self) -> dict[str, str]:
        """The environment of a client: this process's, pointing at the cluster."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        return kept | {"SLURM_CONF": str(self.conf)}

    def run(self, *command: str) -> str:
        """Run a Slurm client; return what it prints."""
        done = subprocess.run(
            [*self.as_user, *command],
            env=self.env,
            cwd=self.dir,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, script: str, *options: str) -> str:
        """Submit the lines of a batch script; return the job's id. Output: `output(job)`."""
        text = f"--wrap={script}"
        log = f"--output={self.dir}/job.%j.out"
        printed = self.run("sbatch", "--parsable", "--mem=1G", log, *options, text)
        return printed.partition(";")[0]

    def output(self, job: str) -> str:
        """Read what a job has printed so far."""
        file = self.dir / f"job.{job}.out"
        return file.read_text() if file.exists() else ""

    def state(self, job: str) -> str:
        """Ask for a job's state, for example RUNNING."""
        shown = self.run("scontrol", "-o", "show", "job", job)
        match = re.search(r"JobState=(\S+)", shown)
        assert match, shown
        return match[1]

    def wait(self, what: str, condition: Callable[[], object], timeout_s: float) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
            time.sleep(POLL_S)

    def wait_for_state(self, job: str, state: str, timeout_s: float = JOB_START_S) -> None:
        """Wait until a job is in a state."""
        self.wait(f"job {job} is {state}", lambda: self.state(job) == state, timeout_s)

    def wait_for_output(self, job: str, text: str, timeout_s: float = JOB_START_S) -> None:
        """Wait until a job has printed something."""
        self.wait(f"job {job} prints {text}", lambda: text in self.output(job), timeout_s)

    def node_down(self, node: str, *, silently: bool = False) -> None:
        """Kill a node's slurmd; unless `silently`, Slurm is told."""
        self._lever("node-down", node, *(["--silently"] if silently else []))

    def node_up(self, node: str) -> None:
        """Bring a node back."""
        self._lever("node-up", node)

    def controller_down(self) -> None:
        """Stop slurmctld."""
        self._lever("controller-down")

    def controller_up(self) -> None:
        """Bring slurmctld back."""
        self._lever("controller-up")

    def _lever(self, *arguments: str) -> None:
        devcluster(*arguments, "--dir", str(self.dir), as_user=self.as_user)


def devcluster(*arguments: str, as_user: tuple[str, ...] = ()) -> str:
    """Run slurm/devcluster; return its standard output."""
    done = subprocess.run(
        [*as_user, str(DEVCLUSTER), *arguments],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def running_cluster(*options: str, as_user: tuple[str, ...] = ()) -> Iterator[SlurmCluster]:
    """Run a cluster in a directory of its own, and leave nothing of it."""
    root = Path(tempfile.mkdtemp(prefix="dev.", dir="/tmp"))
    root.chmod(0o777)
    directory = root / "c"
    try:
        printed = devcluster(
            *("up", "--json", "--dir", str(directory), "--stop-after", str(LIFE_S), *options),
            as_user=as_user,
        )
        facts = json.loads(printed)
        yield SlurmCluster(
            dir=directory, conf=Path(facts["slurm_conf"]), facts=facts, as_user=as_user
        )
    finally:
        devcluster("down", "--dir", str(directory), as_user=as_user)
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """Four nodes with two fake GPUs each, without accounting; shared by the session."""
    with running_cluster() as cluster:
        yield cluster
