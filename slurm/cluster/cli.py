"""The command line of the dev cluster.

Rules: what a shell or a program reads goes to standard output, what a person reads to standard
error; an error is one sentence and exit 1.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable

from cluster import conf, levers, lifecycle, processes, watchdog
from cluster.layout import DevClusterError, Facts, Layout, layout_of

MAX_NODES = 32
MAX_GPUS_PER_NODE = 16


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except DevClusterError as error:
        print(f"devcluster: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    layout = layout_of(options.dir)
    match options.command:
        case "up":
            _up(layout, options)
        case "down":
            _down(layout)
        case "watch":
            watchdog.watch(options.seconds)
            _down(layout)
        case "status":
            return _status(_started(layout), layout, as_json=options.json)
        case "env":
            _print_facts(_started(layout), as_json=options.json)
        case "node-down":
            announce = not options.silently
            levers.node_down(_started(layout), layout, options.node, announce=announce)
        case "node-up":
            levers.node_up(_started(layout), layout, options.node)
        case "controller-down":
            levers.controller_down(layout)
        case _:
            levers.controller_up(layout)
    return 0


def _up(layout: Layout, options: argparse.Namespace) -> None:
    with lifecycle.locked(layout):
        facts, new = lifecycle.up(
            layout,
            nodes=options.nodes,
            gpus_per_node=options.gpus_per_node,
            with_accounting=options.accounting,
        )
        # One who shares a running cluster may lengthen its bounded life, never bound one.
        if options.stop_after is not None and (new or watchdog.running(layout)):
            watchdog.cancel(layout)
            watchdog.start(layout, options.stop_after)
    state = "started" if new else "was running already"
    print(f"devcluster: Slurm {facts.version} in {facts.dir} {state}", file=sys.stderr)
    _print_facts(facts, as_json=options.json)


def _down(layout: Layout) -> None:
    if layout.root.exists():
        with lifecycle.locked(layout):
            lifecycle.down(layout)


def _status(facts: Facts, layout: Layout, *, as_json: bool) -> int:
    running = lifecycle.is_running(facts, layout)
    daemons = processes.daemons(layout)
    if as_json:
        report = _record(facts) | {
            "running": running,
            "daemons": [dataclasses.asdict(daemon) for daemon in daemons],
        }
        print(json.dumps(report, indent=2))
    else:
        print(f"Slurm {facts.version} in {facts.dir}: {'running' if running else 'not complete'}")
        for daemon in sorted(daemons, key=lambda d: (d.name, d.node or "")):
            print(f"  {daemon.name} {daemon.node or ''} pid {daemon.pid}".replace("  pid", " pid"))
    return 0 if running else 1


def _print_facts(facts: Facts, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_record(facts), indent=2))
    else:
        print(f"export SLURM_CONF={facts.slurm_conf}")


def _record(facts: Facts) -> dict[str, object]:
    named = {"accounting": facts.accounting, "nodes": facts.nodes, "partitions": [*conf.PARTITIONS]}
    return dataclasses.asdict(facts) | named


def _started(layout: Layout) -> Facts:
    facts = layout.load()
    if facts is None:
        raise DevClusterError(f"there is no cluster in {layout.root}: run devcluster up")
    return facts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="devcluster",
        description="A private Slurm with fake GPUs on this machine, for development and tests.",
        epilog='Start one for this shell: eval "$(slurm/devcluster up)"',
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--dir", help="its directory, a short path; default: one per user")
        return command

    up = add("up", "start it, or find it running, and print the export lines of its environment")
    up.add_argument("--nodes", type=_number(MAX_NODES), help="gpu01, gpu02, ... (4)")
    gpus = _number(MAX_GPUS_PER_NODE)
    up.add_argument("--gpus-per-node", type=gpus, help="fake GPUs of type h100 (2)")
    up.add_argument("--accounting", action="store_true", help="with slurmdbd: sacct, QOS, limits")
    up.add_argument("--stop-after", type=float, metavar="SECONDS", help="take itself down then")
    status = add("status", "tell which daemons run; exit 1 when one is missing")
    env = add("env", "print the export lines of the environment")
    for command in (up, status, env):
        command.add_argument("--json", action="store_true", help="print the facts as JSON")
    add("down", "cancel all jobs and stop every process of the cluster")
    lost = add("node-down", "kill a node's slurmd; its jobs' processes live on")
    lost.add_argument("node", metavar="NODE")
    lost.add_argument(
        "--silently", action="store_true", help="let Slurm find out by itself, in half a minute"
    )
    add("node-up", "start a node's slurmd again").add_argument("node", metavar="NODE")
    add("controller-down", "stop slurmctld; jobs run on")
    add("controller-up", "start slurmctld again, with its jobs")
    add("watch", "wait, then do as down does; --stop-after starts this").add_argument(
        "seconds", type=float, metavar="SECONDS"
    )
    return parser


def _number(most: int) -> Callable[[str], int]:
    """Make an argument type: a whole number from 1 to `most`."""

    def number(text: str) -> int:
        value = int(text)
        if not 1 <= value <= most:
            raise argparse.ArgumentTypeError(f"must be from 1 to {most}")
        return value

    return number
