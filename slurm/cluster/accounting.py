"""The optional accounting of a dev cluster: slurmdbd on a private MariaDB.

Rules: MariaDB listens on a Unix socket only; slurmdbd starts before the first slurmctld (otherwise
the cluster's id does not match), and GPU limits come after it (before, no GPU is known).
"""

import subprocess
import time
from collections.abc import Callable

from cluster import commands, conf, processes
from cluster.layout import DevClusterError, Facts, Layout, user_name

READY_S = 30.0
"""How long MariaDB and slurmdbd may take each; seconds on an idle machine."""

POLL_S = 0.1
PASSWORD = "dev"  # nothing to protect: the socket lies in the owner's directory
SCHEMA = f"""
CREATE DATABASE slurm_acct_db;
CREATE USER 'slurm'@'localhost' IDENTIFIED BY '{PASSWORD}';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'localhost';
"""


def require_programs() -> None:
    """Check that all is installed, before anything is started."""
    for name in ("slurmdbd", "mariadbd", "mariadb-install-db"):
        commands.program(name, "accounting")


def start(facts: Facts, layout: Layout) -> None:
    """Start MariaDB and slurmdbd, and make the cluster, the account and the user."""
    _start_database(layout)
    file = layout.root / "etc/slurmdbd.conf"
    file.touch(mode=0o600)
    file.write_text(conf.slurmdbd_conf(facts, layout, PASSWORD))
    commands.start(layout, [commands.program("slurmdbd")])
    _wait("slurmdbd", lambda: _answers(layout), layout)
    _sacctmgr(layout, "add", "cluster", facts.cluster)
    _sacctmgr(layout, "add", "account", facts.account)
    _sacctmgr(layout, "add", "user", user_name(), f"account={facts.account}")
    _sacctmgr(layout, "modify", "user", user_name(), "set", f"DefaultAccount={facts.account}")


def add_limits(facts: Facts, layout: Layout) -> None:
    """Make the QOS that shows what a limit does: two GPUs for all of its jobs together."""
    _wait("the controller", lambda: _knows_gpus(layout), layout)
    _sacctmgr(layout, "add", "qos", facts.capped_qos, "set", "GrpTRES=gres/gpu=2")
    _sacctmgr(layout, "modify", "user", user_name(), "set", f"qos+=normal,{facts.capped_qos}")


def _answers(layout: Layout) -> bool:
    return commands.ask(layout, "sacctmgr", "-n", "list", "cluster") is not None


def _knows_gpus(layout: Layout) -> bool:
    return "gpu" in (commands.ask(layout, "sacctmgr", "-n", "-P", "show", "tres") or "")


def _start_database(layout: Layout) -> None:
    data, user = layout.root / "db/data", f"--user={user_name()}"
    commands.start(
        layout,
        [
            commands.program("mariadb-install-db", "accounting"),
            *("--no-defaults", user, f"--datadir={data}", "--skip-test-db"),
            "--auth-root-authentication-method=normal",
        ],
    )
    subprocess.Popen(
        [
            commands.program(processes.DATABASE, "accounting"),
            *("--no-defaults", user, f"--datadir={data}", "--skip-networking"),
            f"--socket={layout.database_socket}",
            f"--pid-file={layout.pid_file('mariadbd')}",
            f"--log-error={layout.log('mariadbd')}",
            *("--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M"),
            *("--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900"),
            *("--skip-log-bin", "--performance-schema=OFF"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    _wait("MariaDB", lambda: _sql(layout, "SELECT 1"), layout)
    if not _sql(layout, SCHEMA):
        raise DevClusterError(f"MariaDB refused slurmdbd's database: see {layout.log('mariadbd')}")


def _sql(layout: Layout, statement: str) -> bool:
    client = commands.program("mariadb", "accounting")
    done = subprocess.run(
        [client, "--no-defaults", "-u", "root", f"--socket={layout.database_socket}"],
        input=statement,
        capture_output=True,
        text=True,
        timeout=READY_S,
        check=False,
    )
    return done.returncode == 0


def _sacctmgr(layout: Layout, *arguments: str) -> None:
    if commands.ask(layout, "sacctmgr", "-i", *arguments, timeout_s=READY_S) is None:
        raise DevClusterError(
            f"sacctmgr {' '.join(arguments)} failed: see {layout.log('slurmdbd')}"
        )


def _wait(what: str, ready: Callable[[], object], layout: Layout) -> None:
    deadline = time.monotonic() + READY_S
    while not ready():
        if time.monotonic() > deadline:
            raise DevClusterError(f"{what} was not ready in {READY_S:.0f} s: see {layout.root}/log")
        time.sleep(POLL_S)
