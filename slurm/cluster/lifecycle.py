"""Bring a dev cluster up and take it down.

Rules: `up` starts from an empty directory, unless the cluster runs, and waits until every node is
idle; `down` cancels the jobs first, because slurmd leaves them behind; both hold the cluster's
lock. What a crashed run left is ended before anything is started.
"""

import fcntl
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import accounting, commands, conf, network, processes, watchdog
from cluster.layout import DevClusterError, Facts, Layout

NODES = 4
GPUS_PER_NODE = 2
READY_S = 30.0
"""How long the nodes may take to become idle: under a second on an idle machine."""

CANCEL_S = 4.0
"""How long jobs may take to end: KillWait is 2 s, and slurmctld looks about once a second."""

STOP_S = 5.0
"""How long a daemon may take to end before it is killed."""

POLL_S = 0.05


@contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Let one `up` or `down` at a time work on a cluster."""
    layout.claim()
    with layout.lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def up(
    layout: Layout, *, nodes: int | None, gpus_per_node: int | None, with_accounting: bool
) -> tuple[Facts, bool]:
    """Start a cluster, or find it running; return its facts and whether it is new.

    A running one of any shape will do where none is asked for.

    Raises:
        DevClusterError: The running one has another shape, or a daemon did not start.
    """
    facts = layout.load()
    if facts and is_running(facts, layout):
        _refuse_another_shape(facts, nodes, gpus_per_node, with_accounting=with_accounting)
        return facts, False
    if with_accounting:
        accounting.require_programs()
    version = commands.release()
    loopback = network.loopback_address()
    address = loopback or "127.0.0.1"
    ports = network.free_ports(2 + (nodes or NODES), address)
    facts = Facts(
        dir=str(layout.root),
        slurm_conf=str(layout.slurm_conf),
        version=version,
        address=address,
        loopback_only=loopback is not None,
        controller_port=ports[0],
        dbd_port=ports[1] if with_accounting else None,
        node_ports=tuple(ports[2:]),
        gpus_per_node=gpus_per_node or GPUS_PER_NODE,
    )
    end_everything(layout)
    layout.save(facts)  # first, for it marks the directory as ours whatever happens next
    layout.renew()
    _write_files(facts, layout)
    try:
        _start_daemons(facts, layout)
    except BaseException:
        end_everything(layout)
        raise
    return facts, True


def down(layout: Layout) -> None:
    """Cancel all jobs, and end every process of the cluster; the logs stay."""
    names = {daemon.name for daemon in processes.daemons(layout)}
    if "slurmctld" in names:
        _cancel_jobs(layout)
    end_everything(layout)


def is_running(facts: Facts, layout: Layout) -> bool:
    """Tell whether all that was started still runs."""
    running = processes.daemons(layout)
    names = {daemon.name for daemon in running}
    expected = {"munged", "slurmctld"} | ({"slurmdbd"} if facts.accounting else set())
    nodes = {daemon.node for daemon in running if daemon.name == "slurmd"}
    return expected <= names and set(facts.nodes) <= nodes


def end_everything(layout: Layout) -> None:
    """End all processes of the cluster, in the order in which they need each other."""
    watchdog.cancel(layout)
    running = processes.daemons(layout)
    for names in (("slurmctld", "slurmd"), ("slurmdbd",), (processes.DATABASE,)):
        processes.stop({daemon.pid for daemon in running if daemon.name in names}, STOP_S)
    jobs = processes.job_processes(layout)
    processes.send(jobs, signal.SIGKILL)
    processes.wait_for_end(jobs, STOP_S)
    processes.stop({daemon.pid for daemon in processes.daemons(layout)}, STOP_S)


def start_controller(layout: Layout, *, clean: bool) -> None:
    """Start slurmctld; `clean` forgets the state that an earlier one has saved."""
    command = [commands.program("slurmctld"), "-f", str(layout.slurm_conf)]
    commands.start(layout, [*command, "-c"] if clean else command)


def start_nodes(layout: Layout, names: list[str]) -> None:
    """Start the slurmd of each node."""
    slurmd = commands.program("slurmd")
    for name in names:
        (layout.root / f"run/spool.{name}").mkdir(exist_ok=True)
    commands.start(layout, *([slurmd, "-N", name, "-f", str(layout.slurm_conf)] for name in names))


def wait_for_idle(facts: Facts, layout: Layout) -> None:
    """Wait until every node is idle.

    Raises:
        DevClusterError: They are not, `READY_S` later; the log tells why.
    """
    deadline = time.monotonic() + READY_S
    while idle_nodes(layout) != set(facts.nodes):
        if time.monotonic() > deadline:
            raise DevClusterError(
                f"not every node was idle after {READY_S:.0f} s: see {layout.root}/log"
            )
        time.sleep(POLL_S)


def idle_nodes(layout: Layout) -> set[str]:
    """Ask Slurm for the idle nodes; none when it does not answer."""
    printed = commands.ask(layout, "sinfo", "-h", "-N", "-p", "gpu", "-t", "idle", "-o", "%N")
    return set((printed or "").split())


def _refuse_another_shape(
    facts: Facts, nodes: int | None, gpus_per_node: int | None, *, with_accounting: bool
) -> None:
    shape = (len(facts.nodes), facts.gpus_per_node, facts.accounting)
    asked = (nodes or shape[0], gpus_per_node or shape[1], with_accounting or shape[2])
    if asked != shape:
        raise DevClusterError(
            f"{facts.dir} runs with --nodes {shape[0]} --gpus-per-node {shape[1]}, "
            f"{'with' if shape[2] else 'without'} --accounting: "
            "ask for the same, stop it with down, or name another --dir"
        )


def _write_files(facts: Facts, layout: Layout) -> None:
    etc = layout.root / "etc"
    layout.slurm_conf.write_text(conf.slurm_conf(facts, layout))
    (etc / "gres.conf").write_text(conf.gres_conf(facts, layout))
    (etc / "cgroup.conf").write_text(conf.cgroup_conf(facts))
    for index in range(facts.gpus_per_node):
        (layout.root / f"dev/nvidia{index}").symlink_to("/dev/null")
    key = layout.root / "munge/munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(1024))


def _start_daemons(facts: Facts, layout: Layout) -> None:
    commands.start(layout, _munged(layout.root / "munge"))
    if facts.accounting:
        accounting.start(facts, layout)
    start_controller(layout, clean=True)
    start_nodes(layout, facts.nodes)
    if facts.accounting:
        accounting.add_limits(facts, layout)
    wait_for_idle(facts, layout)


def _munged(folder: Path) -> list[str]:
    return [
        commands.program("munged"),
        f"--key-file={folder}/munge.key",
        f"--socket={folder}/munge.sock",
        f"--pid-file={folder}/munged.pid",
        f"--log-file={folder}/munged.log",
        f"--seed-file={folder}/munged.seed",
        "--num-threads=2",
        "--force",
    ]


def _cancel_jobs(layout: Layout) -> None:
    jobs = (commands.ask(layout, "squeue", "-h", "-o", "%A") or "").split()
    if not jobs:
        return
    commands.ask(layout, "scancel", *sorted(set(jobs)))
    deadline = time.monotonic() + CANCEL_S
    while time.monotonic() < deadline and commands.ask(layout, "squeue", "-h", "-o", "%A"):
        time.sleep(POLL_S)
