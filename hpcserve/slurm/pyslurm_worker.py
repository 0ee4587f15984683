"""The process that holds pyslurm: prints one JSON answer for each line that it reads.

pyslurm stays out of the controller's process: its calls keep the interpreter lock (10 s and more
while slurmctld is away, in which no other task would run), and libslurm ends the process when it
cannot read its configuration (for a file that is missing it waits a minute first). The module's
name is an argument, so that tests bring a stand-in.

The first line says `{"version": ...}` of pyslurm. Then any line asks for this user's jobs and gets
`{"jobs": [...]}` or `{"error": sentence}`. Times are UNIX seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from types import ModuleType
from typing import Protocol


class Job(Protocol):
    """What may fail in one of pyslurm's jobs."""

    @property
    def comment(self) -> str | None:
        """The comment; UnicodeDecodeError when it is no UTF-8."""
        ...


def jobs(pyslurm: ModuleType) -> list[dict[str, object]]:
    """Return this user's jobs, finished ones too, from one load."""
    return [
        {
            "job_id": str(job.id),
            "state": job.state,
            "reason": job.state_reason or "",
            "partition": job.partition or "",
            "nodes": job.allocated_nodes or "",
            "start": job.start_time,
            "end": job.end_time,
            "exit_code": -job.exit_code_signal if job.exit_code_signal else job.exit_code,
            "preempted": job.preempt_time,
            "comment": comment(job),
        }
        for job in pyslurm.Jobs.load().values()
        if job.user_id == os.getuid()
    ]


def comment(job: Job) -> str:
    """Return the comment, nothing where pyslurm cannot decode it: ours are UTF-8."""
    try:
        return job.comment or ""
    except UnicodeDecodeError:
        return ""


def answer(pyslurm: ModuleType) -> dict[str, object]:
    """Answer one line."""
    try:
        return {"jobs": jobs(pyslurm)}
    except pyslurm.PyslurmError as error:
        return {"error": str(error)}


def main(module: str) -> None:
    """Answer until standard input ends."""
    try:
        pyslurm = importlib.import_module(module)
    except ImportError as error:
        _say({"error": str(error)})
        return
    _say({"version": str(pyslurm.__version__)})
    for _ in sys.stdin:
        _say(answer(pyslurm))


def _say(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
