"""Find and run the programs of Slurm, munge and MariaDB.

Rules: every call has a time limit (a client of an absent controller blocks for ten seconds); the
environment is the caller's without its SLURM_* settings, which would point elsewhere.
"""

import os
import shutil
import subprocess
from pathlib import Path

from cluster.layout import DevClusterError, Layout

SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
CLIENT_TIMEOUT_S = 3.0
"""More than any answer of an idle controller takes; the client's own limit is ten seconds."""


def program(name: str, group: str = "slurm") -> str:
    """Locate a program.

    Raises:
        DevClusterError: It is not installed; the sentence names the package group that has it.
    """
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")
    if path is None:
        raise DevClusterError(f"{name} is not installed: run slurm/packages {group}")
    return path


def environment(layout: Layout) -> dict[str, str]:
    """Make the environment of the cluster's daemons and clients."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "MYSQL"))}
    return inherited | {
        "SLURM_CONF": str(layout.slurm_conf),
        # With StorageHost=localhost slurmdbd's client library looks for the database here.
        "MYSQL_UNIX_PORT": str(layout.database_socket),
    }


def ask(layout: Layout, *command: str, timeout_s: float = CLIENT_TIMEOUT_S) -> str | None:
    """Run a client command; return what it prints, or None when there is no good answer."""
    try:
        done = subprocess.run(
            [program(command[0]), *command[1:]],
            env=environment(layout),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None


def start(layout: Layout, *commands: list[str], timeout_s: float = 30.0) -> None:
    """Start daemons that put themselves into the background, all at the same time.

    Raises:
        DevClusterError: One of them refused; its own words stand in log/start.log.
    """
    log = layout.log("start")
    with log.open("ab") as output:
        running = [
            subprocess.Popen(
                command,
                env=environment(layout),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            for command in commands
        ]
    for process, command in zip(running, commands, strict=True):
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code != 0:
            name = Path(command[0]).name
            raise DevClusterError(f"{name} did not start (exit {code}): see {log.parent}")


def release() -> str:
    """Ask Slurm for its release, for example 22.05.8."""
    printed = subprocess.run(
        [program("slurmctld"), "-V"], capture_output=True, text=True, timeout=10, check=True
    ).stdout
    return printed.split()[-1]
