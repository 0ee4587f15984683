# ruff: noqa: T201 - it acts as commands, which print
"""A small Slurm for the contract tests: the commands that hpcserve uses, with state on disk.

`python fakeslurm.py COMMAND ARGUMENT...` acts as that command; its folder is `$FAKESLURM_DIR`. It
prints what real Slurm printed when it was captured (tests/data/slurm), in the dialect of the
release in the file `release`; jobs are real processes. Four nodes with two GPUs each; whole nodes
are given out. Time moves whenever a command is called. A minute is MINUTE_S seconds here.
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MINUTE_S = 3
KILL_WAIT_S = 1
NODES = ("gpu01", "gpu02", "gpu03", "gpu04")
GPUS = 2
TIERS = {"gpu": 10, "opportunistic": 1}
MAX_MINUTES = 24 * 60
LIVE = ("PENDING", "RUNNING")
DOWN = "Unable to contact slurm controller (connect failure)"

HERE = Path(os.environ["FAKESLURM_DIR"])
Job = dict[str, Any]


def old() -> bool:
    return (HERE / "release").read_text().startswith("22.")


@contextlib.contextmanager
def the_jobs() -> Iterator[dict[str, Job]]:
    """Hold the state, moved on to now."""
    with (HERE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = HERE / "jobs.json"
        jobs: dict[str, Job] = json.loads(path.read_text()) if path.exists() else {}
        move_on(jobs, time.time())
        yield jobs
        move_on(jobs, time.time())
        path.write_text(json.dumps(jobs))


def move_on(jobs: dict[str, Job], now: float) -> None:
    for job in jobs.values():
        if job["state"] == "RUNNING":
            watch(job, now)
    for job in jobs.values():
        if job["state"] == "PENDING":
            place(job, jobs, now)


def watch(job: Job, now: float) -> None:
    ended = HERE / f"{job['id']}.ended"
    if ended.exists():
        status = int(ended.read_text())
        own = "COMPLETED" if status == 0 else "FAILED"
        job["state"] = job["why"] or own
        if job["why"] == "PREEMPTED" and old() and not job["term"]:
            job["state"] = own
        job["status"], job["end"] = status, now
        return
    limit = job["start"] + job["minutes"] * MINUTE_S
    if now >= limit - min(job["notice"], MINUTE_S / 2):
        warn(job)
    if now >= limit:
        stop(job, "TIMEOUT", now)
    if job["preempt"] and now >= job["preempt"] + 1:
        stop(job, "PREEMPTED", now)
    if job["term"] and now >= job["term"] + KILL_WAIT_S:
        signal_group(job, signal.SIGKILL)


def warn(job: Job) -> None:
    if not job["warned"]:
        job["warned"] = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((HERE / f"{job['id']}.pid").read_text()), signal.SIGUSR2)


def stop(job: Job, why: str, now: float) -> None:
    if not job["term"]:
        job["term"], job["why"] = now, why
        signal_group(job, signal.SIGTERM)


def signal_group(job: Job, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(int((HERE / f"{job['id']}.pid").read_text()), number)


def place(job: Job, jobs: dict[str, Job], now: float) -> None:
    held = {
        node for other in jobs.values() if other["state"] == "RUNNING" for node in other["nodes"]
    }
    free = [node for node in NODES if node not in held][: job["nodes_n"]]
    if len(free) == job["nodes_n"]:
        job.update(state="RUNNING", nodes=free, start=now, reason="None")
        subprocess.Popen(
            [sys.executable, __file__, "run", job["id"]],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        pid = HERE / f"{job['id']}.pid"
        while not pid.exists():
            time.sleep(0.01)
        return
    job["reason"] = "Resources"
    for other in jobs.values():
        lower = TIERS[other["partition"]] < TIERS[job["partition"]]
        if other["state"] == "RUNNING" and lower and not other["preempt"]:
            other["preempt"], other["why"] = now, "PREEMPTED"
            warn(other)


def run(job_id: str) -> None:
    """Be slurmstepd: start the script, write down how it ended."""
    job = json.loads((HERE / f"{job_id}.job").read_text())
    env = dict(os.environ, SLURM_JOB_ID=job_id, CUDA_VISIBLE_DEVICES=job["gpus"])
    with Path(job["output"]).open("ab") as output:
        process = subprocess.Popen(
            ["/bin/bash", str(HERE / f"{job_id}.sh")],
            cwd=job["chdir"],
            env=env,
            start_new_session=True,
            stdout=output,
            stderr=output,
        )
    draft = HERE / f"{job_id}.draft"
    draft.write_text(str(process.pid))
    draft.rename(HERE / f"{job_id}.pid")
    code = process.wait()
    draft.write_text(str(-code if code < 0 else code << 8))
    draft.rename(HERE / f"{job_id}.ended")


def fail(*lines: str) -> None:
    print("\n".join(lines), file=sys.stderr)
    sys.exit(1)


def sbatch(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parsable", action="store_true")
    parser.add_argument("--test-only", action="store_true")
    parser.add_argument("script", nargs="?")
    options = parser.parse_args(arguments)
    script = Path(options.script).read_text() if options.script else sys.stdin.read()
    asked: dict[str, str] = dict(
        re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE)
    )
    gres = asked.get("gres", "gpu:0").split(":")
    partition = asked.get("partition", "gpu")
    refusal = ""
    if partition not in TIERS:
        refusal = "Invalid partition name specified"
    elif int(asked["time"]) > MAX_MINUTES:
        refusal = "Requested time limit is invalid (missing or exceeds some limit)"
    elif int(asked["nodes"]) > len(NODES):
        refusal = "More processors requested than permitted"
    elif int(gres[-1]) > GPUS or (len(gres) == 3 and gres[1] != "h100"):
        refusal = "Requested node configuration is not available"
    if refusal and options.test_only:
        fail(f"allocation failure: {refusal}")
    if refusal.startswith("Requested node"):
        now = time.time()
        bad: dict[str, Any] = {"state": "FAILED", "reason": "BadConstraints", "status": 1}
        add(asked, partition, script, gres, start=now, end=now, **bad)
    if refusal:
        first = [f"sbatch: error: invalid partition specified: {partition}"]
        last = f"sbatch: error: Batch job submission failed: {refusal}"
        fail(*(first if partition not in TIERS else []), last)
    if options.test_only:
        stray = "" if old() else " a"
        at = stamp(time.time())
        print(
            f"sbatch: Job 9 to start at {at}{stray} using 1 processors on nodes gpu01"
            f" in partition {partition}",
            file=sys.stderr,
        )
        return
    assert "no-requeue" in asked
    print(add(asked, partition, script, gres))


def add(
    asked: dict[str, str], partition: str, script: str, gres: list[str], **refused: object
) -> str:
    """Write down a new job; return its id."""
    with the_jobs() as jobs:
        job_id = str(len(jobs) + 1)
        job = {
            "id": job_id,
            "state": "PENDING",
            "reason": "None",
            "partition": partition,
            "comment": asked["comment"],
            "minutes": int(asked["time"]),
            "notice": int(asked["signal"].removeprefix("B:USR2@")),
            "nodes_n": int(asked["nodes"]),
            "gpus_n": int(gres[-1]),
            "gpus": ",".join(map(str, range(int(gres[-1])))),
            "nodes": [],
            "output": asked["output"],
            "chdir": asked["chdir"],
            "start": None,
            "end": None,
            "preempt": None,
            "term": None,
            "warned": False,
            "why": None,
            "status": 0,
            **refused,
        }
        (HERE / f"{job_id}.sh").write_text(script)
        (HERE / f"{job_id}.job").write_text(json.dumps(job))
        jobs[job_id] = job
    return job_id


def squeue(arguments: list[str]) -> None:
    fields = "JobID State Reason Partition NodeList StartTime EndTime exit_code PreemptTime Comment"
    form = "--Format=" + ",".join(f"{field}:|" for field in fields.split())
    assert arguments == ["--me", "--states=all", "--noheader", form], arguments
    # somebody else's job, with a comment of two lines
    print("9000|RUNNING|None|gpu|gpu09|2026-11-20T20:12:02|N/A|0|N/A|a|b\nc|")
    with the_jobs() as jobs:
        for job in jobs.values():
            print(row(job))


def row(job: Job) -> str:
    nodes = f"gpu[{job['nodes'][0][3:]}-{job['nodes'][-1][3:]}]" if len(job["nodes"]) > 1 else ""
    end = job["end"] or (job["start"] and job["start"] + job["minutes"] * 60)
    status = job["status"]
    code = str(status) if old() else f"{status >> 8}:{status & 0x7F}"
    columns = (job["id"], job["state"], job["reason"], job["partition"])
    times = (stamp(job["start"]), stamp(end), code, stamp(job["preempt"]))
    return "|".join([*columns, nodes or "".join(job["nodes"]), *times, job["comment"], ""])


def stamp(seconds: float | None) -> str:
    assert os.environ.get("TZ") == "UTC"
    form = "%Y-%m-%dT%H:%M:%S"
    return "N/A" if seconds is None else time.strftime(form, time.gmtime(seconds))


def scancel(arguments: list[str]) -> None:
    with the_jobs() as jobs:
        for job_id in arguments:
            job = jobs.get(job_id)
            if job and job["state"] == "PENDING":
                job.update(state="CANCELLED", end=time.time())
            elif job and job["state"] == "RUNNING":
                stop(job, "CANCELLED", time.time())


def sinfo(arguments: list[str]) -> None:
    assert arguments[:2] == ["--Node", "--noheader"], arguments
    with the_jobs() as jobs:
        running = [job for job in jobs.values() if job["state"] == "RUNNING"]
    for node in NODES:
        used = sum(job["gpus_n"] for job in running if node in job["nodes"])
        state = "mixed" if used else "idle"
        for partition in ("gpu*", "opportunistic"):
            print(f"{node}|{partition}|{state}|gpu:h100:{GPUS}|gpu:h100:{used}(IDX:N/A)|")


def scontrol(arguments: list[str]) -> None:
    if arguments == ["ping"]:
        with the_jobs():
            print("Slurmctld(primary) at localhost is UP")
    elif arguments[:3] == ["--oneliner", "show", "partition"]:
        for name, tier in TIERS.items():
            default, mode, grace = ("YES", "OFF", 0) if name == "gpu" else ("NO", "CANCEL", 1)
            print(
                f"PartitionName={name} AllowGroups=ALL Default={default} GraceTime={grace}"
                f" MaxTime=1-00:00:00 Nodes=gpu[01-04] PriorityTier={tier} PreemptMode={mode}"
                " State=UP TotalNodes=4"
            )
    else:
        with the_jobs() as jobs:
            print(jobs[arguments[-1]])


def main(command: str, arguments: list[str]) -> None:
    if command == "run":
        run(*arguments)
        return
    with (HERE / "calls").open("a") as calls:
        calls.write(f"{command}\n")
    if arguments == ["--version"]:
        print("slurm-wlm", (HERE / "release").read_text())
        return
    if (HERE / "hangs").exists():
        time.sleep(60)
    if (HERE / "down").exists():
        if command == "scontrol" and arguments == ["ping"]:
            print("Slurmctld(primary) at localhost is DOWN")
            sys.exit(1)
        fail(f"{command}: error: {DOWN}")
    if command == "sacct":
        fail("Slurm accounting storage is disabled")
    {"sbatch": sbatch, "squeue": squeue, "scancel": scancel, "sinfo": sinfo, "scontrol": scontrol}[
        command
    ](arguments)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
