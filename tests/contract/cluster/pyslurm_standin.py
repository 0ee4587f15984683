"""A stand-in for pyslurm 25.11: the part of its documented API that hpcserve uses.

The real one builds only beside its own Slurm release. This one reads the state of
tests/contract/cluster/fakeslurm.py, and keeps pyslurm's ways: collections of several clusters whose
`values()` are jobs, times as UNIX seconds or None, exit code and signal apart, None for an unset
string, UnicodeDecodeError for one that is no UTF-8, RPCError (a PyslurmError) when slurmctld is
away. As libslurm does, it ends the process that loads it without a configuration, and looks for
slurmctld where that was when it was loaded. All this was seen with pyslurm 25.11.2 on Slurm
25.11.7.
"""

import json
import os
import subprocess
import time
from collections.abc import ValuesView
from pathlib import Path
from typing import Any

__version__ = "25.11.2"

_STATE = Path(os.environ["FAKESLURM_DIR"])


def _address() -> str:
    path = _STATE / "address"
    return path.read_text() if path.exists() else ""


if (_STATE / "no_configuration").exists():
    os._exit(1)
_KNOWN_ADDRESS = _address()


class PyslurmError(Exception):
    """The base of pyslurm's errors."""


class RPCError(PyslurmError):
    """A call to a Slurm daemon failed."""


class Job:
    """One job as slurmctld has it."""

    def __init__(self, job_id: int) -> None:
        self.id = job_id
        self.user_id = os.getuid()
        self.state = "PENDING"
        self.state_reason = "None"
        self.partition: str | None = None
        self.allocated_nodes: str | None = None
        self.start_time: int | None = None
        self.end_time: int | None = None
        self.preempt_time: int | None = None
        self.exit_code = 0
        self.exit_code_signal = 0
        self.comment_bytes: bytes | None = None

    @property
    def comment(self) -> str | None:
        return None if self.comment_bytes is None else self.comment_bytes.decode()


class Jobs:
    """All jobs of the cluster, by id."""

    def __init__(self) -> None:
        self.data: dict[int, Job] = {}

    def values(self) -> ValuesView[Job]:
        return self.data.values()

    @staticmethod
    def load() -> "Jobs":
        if (_STATE / "hangs").exists():
            time.sleep(60)
        if (_STATE / "down").exists() or _address() != _KNOWN_ADDRESS:
            raise RPCError("Unable to contact slurm controller (connect failure)")
        with (_STATE / "loads").open("a") as loads:
            loads.write("jobs\n")
        # the fake Slurm moves on whenever a command is called
        subprocess.run(["scontrol", "ping"], check=True, stdout=subprocess.DEVNULL)
        jobs = Jobs()
        stranger = Job(9000)
        stranger.user_id += 1
        jobs.data[stranger.id] = stranger
        unreadable = Job(9001)
        unreadable.comment_bytes = "caf\u00e9".encode("latin-1")
        jobs.data[unreadable.id] = unreadable
        path = _STATE / "jobs.json"
        for record in json.loads(path.read_text()).values() if path.exists() else ():
            job = _job(record)
            jobs.data[job.id] = job
        return jobs


def _job(record: dict[str, Any]) -> Job:
    job = Job(int(record["id"]))
    job.state, job.state_reason = record["state"], record["reason"]
    job.partition, job.comment_bytes = record["partition"], record["comment"].encode()
    first, last = (record["nodes"] or [""])[0], (record["nodes"] or [""])[-1]
    job.allocated_nodes = (f"gpu[{first[3:]}-{last[3:]}]" if first != last else first) or None
    job.start_time = _seconds(record["start"])
    job.preempt_time = _seconds(record["preempt"])
    end = record["end"] or (record["start"] and record["start"] + record["minutes"] * 60)
    job.end_time = _seconds(end)
    job.exit_code, job.exit_code_signal = record["status"] >> 8, record["status"] & 0x7F
    return job


def _seconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
