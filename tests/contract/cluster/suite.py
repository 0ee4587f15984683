"""The contract of `hpcserve.ports.cluster.Cluster`, for every back end.

A back end brings a `Site` (or `SlurmSite`) as the fixture `site` and inherits `ClusterContract` or
`SlurmContract`. The jobs are real processes everywhere.
"""

import asyncio
import json
import os
import stat
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hpcserve.domain.job import AgentOrder, EndReason, JobPhase, JobSpec, JobView
from hpcserve.domain.model import Model
from hpcserve.errors import BackendError
from hpcserve.ports.cluster import Cluster, Refused
from hpcserve.slurm.submission import Submission
from hpcserve.slurm.tag import Tag
from tests.contract.cluster import entry

ROOT = Path(__file__).parents[3]
POLL_S = 0.2
SECRETS = {"control_key": "secret-of-the-control-api", "engine_key": "secret-of-the-engine"}


class WallClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Site(ABC):
    """A back end under test."""

    #: partition of ordinary jobs
    partition: str | None = None
    #: shortest time limit that it knows, s, and how long its end may take
    short_limit_s = 3
    end_s = 20.0
    #: a start may take that long on a busy machine
    start_s = 60.0

    def __init__(self, folder: Path, python: str) -> None:
        self.folder = folder
        self.python = python

    @abstractmethod
    def cluster(self, site: str = "test") -> Cluster:
        """Make a fresh adapter, as a restarted controller does."""

    def submission(self, site: str) -> Submission:
        return Submission(
            tag=Tag(site),
            jobs_dir=self.folder / "jobs",
            entry=entry.run,
            python=self.python,
            python_path=(str(ROOT),),
            setup=("export A_SITES_OWN_LINE=1",),
        )

    def spec(self, settings: dict[str, object] | None = None, **fields: Any) -> JobSpec:
        """Return a job that waits until told to leave, unless its settings say otherwise."""
        token = f"inst-{uuid.uuid4().hex}"
        instance_dir = self.folder / "instances" / token
        base: dict[str, Any] = {
            "token": token,
            "name": "hpcserve-m",
            "partition": self.partition,
            "qos": None,
            "account": None,
            "nodes": 1,
            "gpus_per_node": 1,
            "gpu_type": None,
            "cpus_per_node": 1,
            "memory_gib_per_node": 1,
            "time_limit_s": 600,
            "time_min_s": None,
            "notice_s": 60,
            "order": AgentOrder(
                instance_id=token,
                token=token,
                model=Model(name="m", weights="/weights/m"),
                role="mixed",
                gateways_dir=str(self.folder / "gateways"),
                instance_dir=str(instance_dir),
                settings=settings or {},
                **SECRETS,
            ),
        }
        return JobSpec(**{**base, **fields})


class SlurmSite(Site):
    """A back end with a queue: four nodes with two GPUs each."""

    partition = "gpu"
    opportunistic = "opportunistic"
    #: how often `jobs` calls squeue
    squeues_per_question = 1

    @abstractmethod
    def calls(self, command: str) -> int:
        """Count the calls of a Slurm command so far."""

    @abstractmethod
    def controller_down(self) -> None:
        """Take slurmctld away."""

    @abstractmethod
    def controller_up(self) -> None:
        """Bring slurmctld back."""

    @abstractmethod
    def show_job(self, job_id: str) -> str:
        """Return all that Slurm tells anyone about a job."""


async def submitted(cluster: Cluster, spec: JobSpec) -> str:
    job_id = await cluster.submit(spec)
    assert isinstance(job_id, str), job_id
    return job_id


async def until(
    cluster: Cluster, spec: JobSpec, condition: Callable[[JobView], bool], timeout_s: float
) -> JobView:
    """Ask for our jobs until this one fulfils a condition."""
    deadline = time.monotonic() + timeout_s
    while True:
        view = (await cluster.jobs()).jobs.get(spec.token)
        if view is not None and condition(view):
            return view
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {view}; {log_of(spec)}"
        await asyncio.sleep(POLL_S)


async def gone(cluster: Cluster, spec: JobSpec, timeout_s: float) -> JobView:
    return await until(cluster, spec, lambda view: view.phase is JobPhase.GONE, timeout_s)


async def ran(spec: JobSpec, timeout_s: float) -> dict[str, Any]:
    """Wait until the job's own code runs; return what it said."""
    path = Path(spec.order.instance_dir) / "ran.json"
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, f"did not run within {timeout_s} s: {log_of(spec)}"
        await asyncio.sleep(POLL_S)
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts


def log_of(spec: JobSpec) -> str:
    path = Path(spec.order.instance_dir) / "job.log"
    return path.read_text() if path.exists() else "it has no log"


def got(spec: JobSpec, name: str) -> bool:
    return (Path(spec.order.instance_dir) / name).exists()


class ClusterContract:
    """What every back end promises."""

    async def test_a_job_runs_with_its_order_and_ends_by_itself(self, site: Site) -> None:
        cluster, spec = site.cluster(), site.spec({"exit": 0})
        job_id = await submitted(cluster, spec)
        view = await gone(cluster, spec, site.start_s)
        assert view.job_id == job_id
        assert (view.end_reason, view.exit_code) == (None, 0)
        facts = await ran(spec, 0)
        assert facts["control_key"] == SECRETS["control_key"]
        assert "A_SITES_OWN_LINE" in facts["environment"]

    async def test_a_job_that_fails_has_crashed(self, site: Site) -> None:
        cluster, spec = site.cluster(), site.spec({"exit": 3})
        await submitted(cluster, spec)
        view = await gone(cluster, spec, site.start_s)
        assert (view.end_reason, view.exit_code) == (EndReason.CRASHED, 3)

    async def test_a_fresh_adapter_finds_the_job_by_its_token(self, site: Site) -> None:
        first, spec = site.cluster(), site.spec()
        job_id = await submitted(first, spec)
        facts = await ran(spec, site.start_s)
        view = await until(
            site.cluster(), spec, lambda view: view.phase is JobPhase.HELD, site.start_s
        )
        assert view.job_id == job_id
        assert view.nodes
        assert view.start_at is not None
        assert view.end_at is not None
        assert view.start_at <= datetime.now(UTC) < view.end_at
        os.kill(facts["pid"], 0)
        await first.cancel([job_id])
        await gone(first, spec, site.end_s)

    async def test_jobs_of_another_site_are_not_ours(self, site: Site) -> None:
        cluster, spec = site.cluster("one"), site.spec({"exit": 0})
        await submitted(cluster, spec)
        await gone(cluster, spec, site.start_s)
        assert spec.token not in (await site.cluster("another").jobs()).jobs

    async def test_a_running_job_is_cancelled_once_and_for_all(self, site: Site) -> None:
        cluster, spec = site.cluster(), site.spec()
        job_id = await submitted(cluster, spec)
        facts = await ran(spec, site.start_s)
        await cluster.cancel([job_id])
        view = await gone(cluster, spec, site.end_s)
        assert view.end_reason is EndReason.CANCELLED_OUTSIDE
        assert got(spec, "SIGTERM")
        assert not _is_running(facts["pid"])
        await cluster.cancel([job_id])
        await cluster.cancel([])

    async def test_what_cannot_run_is_refused_with_the_reason(self, site: Site) -> None:
        cluster, spec = site.cluster(), site.spec(gpus_per_node=64)
        answer = await cluster.submit(spec)
        assert isinstance(answer, Refused)
        assert answer.message
        assert "\n" not in answer.message
        # Slurm keeps a record of some of the jobs that it refused
        view = (await cluster.jobs()).jobs.get(spec.token)
        assert view is None or view.end_reason is EndReason.REJECTED

    async def test_the_time_limit_warns_and_then_ends_the_job(self, site: Site) -> None:
        cluster = site.cluster()
        spec = site.spec(time_limit_s=site.short_limit_s, notice_s=site.short_limit_s // 2)
        await submitted(cluster, spec)
        await ran(spec, site.start_s)
        view = await gone(cluster, spec, 2.5 * site.short_limit_s + site.end_s)
        assert view.end_reason is EndReason.EXPIRED
        assert got(spec, "SIGUSR2")

    async def test_secrets_are_only_in_the_pickle(self, site: Site) -> None:
        cluster, spec = site.cluster(), site.spec({"exit": 0})
        await submitted(cluster, spec)
        await gone(cluster, spec, site.start_s)
        folder = site.folder / "jobs" / spec.token
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        holders = set()
        for path in folder.iterdir():
            content = path.read_bytes()
            if any(secret.encode() in content for secret in SECRETS.values()):
                holders.add(path.resolve())
        assert {path.name for path in holders} == {"order.pkl"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in holders} == {0o600}

    async def test_the_script_shown_is_the_script_run(self, site: Site) -> None:
        cluster, spec = site.cluster(), site.spec({"exit": 0})
        shown = cluster.script(spec)
        await submitted(cluster, spec)
        assert (site.folder / "jobs" / spec.token / "submission.sh").read_text() == shown
        await gone(cluster, spec, site.start_s)

    async def test_partitions_count_idle_gpus(self, site: Site) -> None:
        cluster = site.cluster()
        before = await _the_partition(cluster, site)
        assert before.is_up
        assert before.gpus_total >= 2
        spec = site.spec(gpus_per_node=2)
        job_id = await submitted(cluster, spec)
        facts = await ran(spec, site.start_s)
        assert facts["gpus"] == "0,1"
        during = await _the_partition(cluster, site)
        assert during.gpus_idle == before.gpus_idle - 2
        assert during.nodes_idle == before.nodes_idle - 1
        await cluster.cancel([job_id])
        await gone(cluster, spec, site.end_s)

    async def test_the_start_of_a_job_that_fits_is_near(self, site: Site) -> None:
        cluster = site.cluster()
        start = await cluster.estimate_start(site.spec())
        assert start is not None
        assert abs((start - datetime.now(UTC)).total_seconds()) < 600
        assert await cluster.estimate_start(site.spec(gpus_per_node=64)) is None

    async def test_accounting_says_nothing_of_jobs_that_never_were(self, site: Site) -> None:
        assert await site.cluster().accounted({"inst-never": "999999"}) == {}
        assert await site.cluster().accounted({}) == {}


class SlurmContract(ClusterContract):
    """What a back end with a queue promises besides."""

    async def test_a_pending_job_says_why_and_is_cancelled(self, site: SlurmSite) -> None:
        cluster = site.cluster()
        full = site.spec(nodes=4, gpus_per_node=2)
        waiting = site.spec()
        full_id = await submitted(cluster, full)
        await ran(full, site.start_s)
        waiting_id = await submitted(cluster, waiting)
        view = await until(cluster, waiting, lambda view: view.reason != "None", site.end_s)
        assert view.phase is JobPhase.PENDING
        assert view.end_at is None
        assert view.nodes == ()
        assert len((await cluster.jobs()).jobs[full.token].nodes) == 4
        await cluster.cancel([waiting_id, full_id])
        view = await gone(cluster, waiting, site.end_s)
        assert view.end_reason is EndReason.CANCELLED_OUTSIDE
        assert not got(waiting, "ran.json")
        await gone(cluster, full, site.end_s)

    @pytest.mark.parametrize("leaves_on", [["SIGUSR2"], ["SIGTERM"]])
    async def test_a_preempted_job_says_so_however_it_leaves(
        self, site: SlurmSite, leaves_on: list[str]
    ) -> None:
        cluster = site.cluster()
        cheap = site.spec(
            {"leaves_on": leaves_on}, partition=site.opportunistic, nodes=4, gpus_per_node=2
        )
        await submitted(cluster, cheap)
        await ran(cheap, site.start_s)
        paid = site.spec({"exit": 0}, nodes=4, gpus_per_node=2)
        await submitted(cluster, paid)
        view = await gone(cluster, cheap, site.start_s)
        assert view.end_reason is EndReason.PREEMPTED
        await gone(cluster, paid, site.start_s)

    async def test_all_our_jobs_are_one_question(self, site: SlurmSite) -> None:
        cluster = site.cluster()
        specs = [site.spec({"exit": 0}) for _ in range(3)]
        for spec in specs:
            await submitted(cluster, spec)
        before = site.calls("squeue")
        jobs = (await cluster.jobs()).jobs
        assert site.calls("squeue") == before + site.squeues_per_question
        assert {spec.token for spec in specs} <= set(jobs)
        for spec in specs:
            await gone(cluster, spec, site.start_s)

    async def test_nothing_is_concluded_while_the_controller_is_away(self, site: SlurmSite) -> None:
        cluster, spec = site.cluster(), site.spec()
        job_id = await submitted(cluster, spec)
        await ran(spec, site.start_s)
        site.controller_down()
        try:
            questions = [
                cluster.jobs(),
                cluster.submit(site.spec()),
                cluster.cancel(["1"]),
                cluster.partitions(),
                cluster.estimate_start(site.spec()),
            ]
            answers = await asyncio.gather(*questions, return_exceptions=True)
        finally:
            site.controller_up()
        for answer in answers:
            assert isinstance(answer, BackendError), answer
            assert answer.retryable, answer
        view = await _again(lambda: until(cluster, spec, lambda view: True, site.start_s))
        assert (view.job_id, view.phase) == (job_id, JobPhase.HELD)
        await cluster.cancel([job_id])
        await gone(cluster, spec, site.end_s)

    async def test_slurm_tells_nobody_our_secrets(self, site: SlurmSite) -> None:
        cluster, spec = site.cluster(), site.spec({"exit": 0})
        job_id = await submitted(cluster, spec)
        shown = site.show_job(job_id)
        assert spec.token in shown
        assert not any(secret in shown for secret in SECRETS.values())
        await gone(cluster, spec, site.start_s)
        facts = await ran(spec, 0)
        assert not [name for name in facts["environment"] if name.startswith("HPCSERVE_")]

    async def test_slurms_refusals_are_told_apart(self, site: SlurmSite) -> None:
        cluster = site.cluster()
        for refused, words in (
            (site.spec(partition="nowhere"), "Invalid partition name"),
            (site.spec(time_limit_s=40 * 86_400), "time limit is invalid"),
            (site.spec(nodes=99), "More processors requested than permitted"),
            (site.spec(gpu_type="abacus"), "node configuration is not available"),
        ):
            answer = await cluster.submit(refused)
            assert isinstance(answer, Refused), refused
            assert words in answer.message

    async def test_slurm_may_shorten_a_job_to_its_least_time(self, site: SlurmSite) -> None:
        spec = replace(site.spec(), time_min_s=61)
        assert "#SBATCH --time-min=2\n" in site.cluster().script(spec)


async def _the_partition(cluster: Cluster, site: Site) -> Any:
    partitions = {partition.name: partition for partition in await cluster.partitions()}
    return partitions[site.partition or next(iter(partitions))]


async def _again(ask: Callable[[], Any]) -> Any:
    """Ask until the controller has come back."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return await ask()
        except BackendError as error:
            if not error.retryable or time.monotonic() > deadline:
                raise
            await asyncio.sleep(POLL_S)


def _is_running(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"
