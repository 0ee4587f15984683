"""The dev cluster is a real Slurm: what it promises is shown on its daemons."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.slurm_cluster import SlurmCluster, devcluster, running_cluster

pytestmark = pytest.mark.timeout(90)

TRAPPER = """
trap "echo got USR1" USR1
trap "echo got TERM; exit 0" TERM
echo ready
while true; do sleep 0.1; done
"""


def processes_naming(directory: Path) -> list[str]:
    """List the living processes whose command or open files lie under a directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            links = [str(link.readlink()) for link in (entry / "fd").iterdir()]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if state != "Z" and any(f"{directory}/" in text for text in [command, *links]):
            found.append(f"{entry.name} {command}")
    return found


def test_four_nodes_are_idle_within_five_seconds() -> None:
    began = time.monotonic()
    with running_cluster() as cluster:
        took_s = time.monotonic() - began
        idle = cluster.run("sinfo", "-h", "-N", "-p", "gpu", "-t", "idle", "-o", "%N").split()
    assert idle == ["gpu01", "gpu02", "gpu03", "gpu04"]
    assert took_s < 5


def test_a_job_sees_only_the_gpus_that_it_asked_for(slurm_cluster: SlurmCluster) -> None:
    first = slurm_cluster.submit("echo gpus=$CUDA_VISIBLE_DEVICES; sleep 60", "--gres=gpu:2")
    slurm_cluster.wait_for_output(first, "gpus=0,1")
    second = slurm_cluster.submit("echo gpus=$CUDA_VISIBLE_DEVICES", "--gres=gpu:h100:1")
    slurm_cluster.wait_for_output(second, "gpus=0\n")
    slurm_cluster.run("scancel", first)


def test_a_preempted_job_gets_its_own_signal_before_term(slurm_cluster: SlurmCluster) -> None:
    victim = slurm_cluster.submit(
        TRAPPER, "--partition=opportunistic", "--nodes=4", "--gres=gpu:2", "--signal=B:USR1@30"
    )
    slurm_cluster.wait_for_output(victim, "ready")
    winner = slurm_cluster.submit("sleep 1", "--partition=gpu", "--gres=gpu:2")
    slurm_cluster.wait_for_output(victim, "got TERM", timeout_s=40)
    printed = slurm_cluster.output(victim).splitlines()
    assert [line for line in printed if line.startswith("got")] == ["got USR1", "got TERM"]
    slurm_cluster.wait_for_state(winner, "COMPLETED", timeout_s=40)


def test_a_job_ends_with_its_node_and_the_node_comes_back(slurm_cluster: SlurmCluster) -> None:
    job = slurm_cluster.submit("echo ready; sleep 60", "--nodelist=gpu03", "--no-requeue")
    slurm_cluster.wait_for_output(job, "ready")
    slurm_cluster.node_down("gpu03")
    slurm_cluster.wait_for_state(job, "NODE_FAIL", timeout_s=10)
    assert slurm_cluster.run("sinfo", "-h", "-p", "gpu", "-n", "gpu03", "-o", "%T") == "down"
    slurm_cluster.node_up("gpu03")
    again = slurm_cluster.submit("echo back on $SLURMD_NODENAME", "--nodelist=gpu03")
    slurm_cluster.wait_for_output(again, "back on gpu03")


def test_a_job_runs_on_while_the_controller_is_away(slurm_cluster: SlurmCluster) -> None:
    script = "for i in $(seq 600); do echo beat $i; sleep 0.1; done"
    job = slurm_cluster.submit(script)
    slurm_cluster.wait_for_output(job, "beat 1\n")
    slurm_cluster.controller_down()
    beats = slurm_cluster.output(job).count("\n")
    slurm_cluster.wait_for_output(job, f"beat {beats + 5}\n", timeout_s=10)
    slurm_cluster.controller_up()
    assert slurm_cluster.state(job) == "RUNNING"
    slurm_cluster.run("scancel", job)


def test_a_second_up_finds_the_running_cluster(slurm_cluster: SlurmCluster) -> None:
    job = slurm_cluster.submit("sleep 60")
    printed = devcluster("up", "--dir", str(slurm_cluster.dir))
    assert printed == f"export SLURM_CONF={slurm_cluster.conf}\n"
    assert slurm_cluster.state(job) in {"PENDING", "RUNNING"}
    slurm_cluster.run("scancel", job)


def test_two_clusters_side_by_side_and_down_leaves_only_the_other(
    slurm_cluster: SlurmCluster,
) -> None:
    with running_cluster("--nodes", "1") as other:
        script = "trap '' TERM; setsid sleep 99 & echo ready; sleep 99 & wait; wait"
        job = other.submit(script, "--gres=gpu:2")
        other.wait_for_output(job, "ready")
        assert other.facts["controller_port"] != slurm_cluster.facts["controller_port"]
        assert len(processes_naming(other.dir)) >= 5
        devcluster("down", "--dir", str(other.dir))
        assert processes_naming(other.dir) == []
    assert json.loads(devcluster("status", "--json", "--dir", str(slurm_cluster.dir)))["running"]


def test_up_ends_what_a_crashed_run_left() -> None:
    with running_cluster("--nodes", "2") as cluster:
        status = json.loads(devcluster("status", "--json", "--dir", str(cluster.dir)))
        (controller,) = (d["pid"] for d in status["daemons"] if d["name"] == "slurmctld")
        os.kill(controller, signal.SIGKILL)
        devcluster("up", "--nodes", "2", "--dir", str(cluster.dir))
        renewed = json.loads(devcluster("status", "--json", "--dir", str(cluster.dir)))
    assert renewed["running"]
    before = {daemon["pid"] for daemon in status["daemons"]}
    assert before.isdisjoint(daemon["pid"] for daemon in renewed["daemons"])


def test_a_bounded_cluster_takes_itself_down() -> None:
    with running_cluster("--nodes", "1", "--stop-after", "1") as cluster:
        cluster.wait("the cluster has gone", lambda: not processes_naming(cluster.dir), 20)


def test_an_error_is_one_sentence_that_says_what_to_do() -> None:
    refused = subprocess.run(
        [Path(__file__).parents[3] / "slurm/devcluster", "up", "--dir", "/tmp/" + "x" * 60],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr.startswith("devcluster: /tmp/xxx")
    assert refused.stderr.endswith("name a shorter --dir\n")
    assert refused.stderr.count("\n") == 1


def test_an_ordinary_user_runs_one() -> None:
    become = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    root = os.getuid() == 0
    with running_cluster("--nodes", "1", as_user=become if root else ()) as cluster:
        job = cluster.submit("id -u; echo gpus=$CUDA_VISIBLE_DEVICES", "--gres=gpu:1")
        cluster.wait_for_output(job, "gpus=0")
        assert cluster.output(job).startswith("65534\n" if root else f"{os.getuid()}\n")


def test_with_accounting_sacct_remembers_and_a_qos_limits() -> None:
    with running_cluster("--nodes", "2", "--accounting") as cluster:
        capped = ("--qos=capped", "--gres=gpu:2")
        done = cluster.submit("true", "--gres=gpu:1", "--comment=remember")
        first = cluster.submit("sleep 60", *capped)
        second = cluster.submit("sleep 60", *capped)
        columns = "JobID,Account,State,AllocTRES,Comment"

        def row() -> list[str]:
            return cluster.run("sacct", "-X", "-n", "-P", "-j", done, "-o", columns).split("|")

        cluster.wait("sacct knows the job", lambda: "COMPLETED" in row(), 30)
        assert row()[:2] == [done, "hpc"]
        assert "gres/gpu=1" in row()[3]
        assert row()[4] == "remember"
        cluster.wait_for_state(first, "RUNNING")
        cluster.wait(
            "the limit holds the second job",
            lambda: cluster.run("squeue", "-h", "-j", second, "-o", "%r") == "QOSGrpGRES",
            10,
        )
