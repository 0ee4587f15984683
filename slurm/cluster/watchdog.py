"""A small process that takes a dev cluster down after a while, whatever became of its owner.

Rules: it belongs to one start of the cluster and ends with it; it runs `down` like anybody else.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from cluster import processes
from cluster.layout import Layout

ENTRY = Path(__file__).resolve().parent.parent / "devcluster"


def start(layout: Layout, stop_after_s: float) -> None:
    """Start the watchdog; it outlives the calling process."""
    watchdog = subprocess.Popen(
        [sys.executable, "-B", str(ENTRY), "watch", "--dir", str(layout.root), str(stop_after_s)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    layout.pid_file("watchdog").write_text(str(watchdog.pid))


def watch(stop_after_s: float) -> None:
    """Be the watchdog: wait."""
    deadline = time.monotonic() + stop_after_s
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(left)


def running(layout: Layout) -> int | None:
    """Find the watchdog's process id."""
    try:
        pid = int(layout.pid_file("watchdog").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if b"watch" in command and os.fsencode(layout.root) in command else None


def cancel(layout: Layout) -> None:
    """End the watchdog, unless it is the one that asks."""
    pid = running(layout)
    if pid is not None and pid != os.getpid():
        processes.stop({pid}, grace_s=1.0)
