"""What a test does to a running dev cluster: lose a node, lose the controller, and get them back.

Rules: a lost node's jobs run on, as they do when only slurmd dies; a lost controller has saved its
state and comes back with its jobs.
"""

import signal
import time

from cluster import commands, lifecycle, processes
from cluster.layout import DevClusterError, Facts, Layout

READY_S = 30.0
"""How long the controller or a node may take to answer again; a few seconds on an idle machine."""

POLL_S = 0.05
UP_STATES = "idle,mixed,allocated,completing"


def node_down(facts: Facts, layout: Layout, node: str, *, announce: bool) -> None:
    """Kill a node's slurmd; Slurm is told at once, or else notices in half a minute.

    Raises:
        DevClusterError: There is no such node, or it is down.
    """
    pids = _slurmd(facts, layout, node)
    if not pids:
        raise DevClusterError(f"{node} is down already: see devcluster status")
    processes.send(pids, signal.SIGKILL)
    processes.wait_for_end(pids, READY_S)
    if announce:
        told = ("State=DOWN", "Reason=node-down")
        if commands.ask(layout, "scontrol", "update", f"NodeName={node}", *told) is None:
            raise DevClusterError(f"{node} is down, but the controller did not take the news")


def node_up(facts: Facts, layout: Layout, node: str) -> None:
    """Start a node's slurmd again, and wait until Slurm counts on the node.

    Raises:
        DevClusterError: There is no such node, it is up, or it does not come back.
    """
    if _slurmd(facts, layout, node):
        raise DevClusterError(f"{node} is up already: see devcluster status")
    lifecycle.start_nodes(layout, [node])
    deadline = time.monotonic() + READY_S
    # Slurm's filter knows which states count as up, and that an asterisk does not.
    while not commands.ask(layout, "sinfo", "-h", "-r", "-n", node, "-t", UP_STATES, "-o", "%N"):
        if time.monotonic() > deadline:
            raise DevClusterError(f"{node} did not come back: see {layout.log('slurmd.' + node)}")
        time.sleep(POLL_S)


def controller_down(layout: Layout) -> None:
    """Stop slurmctld; jobs run on, and clients block for ten seconds.

    Raises:
        DevClusterError: It does not run.
    """
    pids = _controller(layout)
    if not pids:
        raise DevClusterError("the controller is down already: see devcluster status")
    processes.stop(pids, READY_S)


def controller_up(layout: Layout) -> None:
    """Start slurmctld with the state that it saved, and wait until it answers.

    Raises:
        DevClusterError: It runs already, or does not answer.
    """
    if _controller(layout):
        raise DevClusterError("the controller is up already: see devcluster status")
    lifecycle.start_controller(layout, clean=False)
    deadline = time.monotonic() + READY_S
    while commands.ask(layout, "squeue", "-h") is None:
        if time.monotonic() > deadline:
            raise DevClusterError(f"the controller is silent: see {layout.log('slurmctld')}")
        time.sleep(POLL_S)


def _controller(layout: Layout) -> set[int]:
    return {d.pid for d in processes.daemons(layout) if d.name == "slurmctld"}


def _slurmd(facts: Facts, layout: Layout, node: str) -> set[int]:
    if node not in facts.nodes:
        raise DevClusterError(f"there is no node {node}: the nodes are {', '.join(facts.nodes)}")
    running = processes.daemons(layout)
    return {d.pid for d in running if d.name == "slurmd" and d.node == node}
