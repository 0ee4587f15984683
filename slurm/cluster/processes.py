"""Which processes belong to a dev cluster, read from /proc, and how they are ended.

Rules: a daemon is known by its program's name and by a file that it holds open under the cluster's
directory, so no pid file can mislead, and no other cluster's process is ever touched. A zombie is
not alive. slurmd leaves its jobs behind when it stops; they are found by their ancestors, or, when
they have cut these off, by the environment that slurmd gave them.
"""

import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from cluster.layout import Layout

POLL_S = 0.02
"""How often the end of a process is looked for."""

NODE_LOG = re.compile(r"/slurmd\.(\w+)\.log$")
DATABASE = "mariadbd"
DAEMONS = ("munged", "slurmctld", "slurmd", "slurmstepd", "slurmdbd", DATABASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One line of the process table; never a zombie."""

    pid: int
    parent: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """One running daemon of a cluster; `node` is set for slurmd and slurmstepd."""

    pid: int
    name: str
    node: str | None


def table() -> list[Process]:
    """Read the process table."""
    processes = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            before, _, after = (entry / "stat").read_text().rpartition(")")
        except OSError:  # it has just ended
            continue
        state, parent = after.split()[:2]
        if state not in "ZX":
            name = before.partition("(")[2]
            processes.append(Process(pid=int(entry.name), parent=int(parent), name=name))
    return processes


def daemons(layout: Layout) -> list[Daemon]:
    """Find the running daemons of a cluster."""
    found = []
    for process in table():
        if process.name not in DAEMONS:
            continue
        files = _files_under(process.pid, layout.root)
        if files:
            nodes = [match[1] for file in files if (match := NODE_LOG.search(file))]
            node = nodes[0] if nodes else None
            found.append(Daemon(pid=process.pid, name=process.name, node=node))
    return found


def job_processes(layout: Layout, node: str | None = None) -> set[int]:
    """Find every process of the cluster's jobs, slurmstepd included; on one node, if named."""
    steps = {
        daemon.pid
        for daemon in daemons(layout)
        if daemon.name == "slurmstepd" and node in (None, daemon.node)
    }
    processes = table()
    conf = f"SLURM_CONF={layout.slurm_conf}".encode()
    place = b"SLURMD_NODENAME=" + (node or "").encode()
    for process in processes:
        environment = _environment(process.pid)
        here = place in environment if node else any(e.startswith(place) for e in environment)
        if conf in environment and here:
            steps.add(process.pid)
    return _with_descendants(steps, processes) - {os.getpid()}


def send(pids: set[int], number: signal.Signals) -> None:
    """Signal processes; those that have ended meanwhile do not matter."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def wait_for_end(pids: set[int], timeout_s: float) -> set[int]:
    """Wait until the processes have ended; return those that have not."""
    deadline = time.monotonic() + timeout_s
    while left := pids & {process.pid for process in table()}:
        if time.monotonic() > deadline:
            return left
        time.sleep(POLL_S)
    return set()


def stop(pids: set[int], grace_s: float) -> None:
    """End processes: SIGTERM, and SIGKILL for those that are still there after `grace_s`."""
    send(pids, signal.SIGTERM)
    left = wait_for_end(pids, grace_s)
    send(left, signal.SIGKILL)
    wait_for_end(left, grace_s)


def _files_under(pid: int, root: Path) -> list[str]:
    files = []
    try:
        links = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # ended, or somebody else's
        return []
    for link in links:
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith(f"{root}/"):
            files.append(target)
    return files


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # ended, or somebody else's
        return []


def _with_descendants(pids: set[int], processes: list[Process]) -> set[int]:
    family = set(pids)
    while children := {p.pid for p in processes if p.parent in family} - family:
        family |= children
    return family
