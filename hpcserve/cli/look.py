"""Commands that only look: `status`, `explain`, `plan`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hpcserve.cli.console import (
    ConfigFile,
    Json,
    clock_time,
    console,
    duration,
    print_json,
    say,
    settings,
)


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    app.command()(status)
    app.command()(explain)
    app.command()(plan)


def status(config: ConfigFile = None, as_json: Json = False) -> None:
    """Show instances, models, batches and the queue."""
    from hpcserve.cli.client import call, connect

    with connect(settings(config)) as client:
        answer = call(client, "GET", "/hpcserve/v1/status")
    if as_json:
        print_json(answer)
        return
    _controller(answer["controller"])
    if answer["closed_because"]:
        say(f"CLOSED: {answer['closed_because']}; `hpcserve up` or `hpcserve admin open` opens it.")
    _models(answer["models"])
    _instances(answer["instances"], answer["ended"])
    _batches(answer["batches"])


def _controller(controller: dict[str, Any]) -> None:
    if not controller:
        say("No controller has reported yet.")
        return
    say(f"controller {controller['holder']} on {controller['cluster']}")
    if controller["scheduler_down_since"]:
        say(
            f"The scheduler has not answered since {clock_time(controller['scheduler_down_since'])}"
            f" ({controller['scheduler_message']}); nothing is cancelled meanwhile."
        )


def _models(models: list[dict[str, Any]]) -> None:
    for model in models:
        if model.get("reason"):
            say(f"{'GIVEN UP' if model['given_up'] else 'TROUBLE'}: {model['reason']}")


def _instances(instances: list[dict[str, Any]], ended: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(title="instances", box=None, title_justify="left", pad_edge=False)
    for column in ("id", "model", "state", "job", "partition", "node", "time left", "in flight"):
        table.add_column(column)
    table.add_column("why", overflow="fold")
    for instance in instances:
        load = instance["load"] or {}
        flight = f"{load['running']}+{load['waiting']}" if load else "-"
        waiting = instance["state"] == "queued"
        table.add_row(
            instance["id"],
            instance["model"],
            instance["state"],
            instance["job_id"] or "-",
            instance["partition"] or "-",
            ",".join(instance["nodes"]) or "-",
            duration(instance["left_s"]),
            flight,
            f"{instance['job_reason']}; starts {clock_time(instance['expected_start_at'])}"
            if waiting
            else instance["reason"],
        )
    for instance in ended[:5]:
        table.add_row(
            instance["id"],
            instance["model"],
            "ended",
            instance["job_id"] or "-",
            instance["partition"] or "-",
            ",".join(instance["nodes"]) or "-",
            clock_time(instance["ended_at"]),
            "-",
            instance["end_reason"],
        )
    console().print(table if table.row_count else "no instances")


def _batches(batches: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(title="batches", box=None, title_justify="left", pad_edge=False)
    for column in ("id", "model", "state", "done", "failed", "total", "deadline", "owner"):
        table.add_column(column)
    for batch in batches:
        counts = batch["counts"]
        table.add_row(
            batch["id"],
            batch["model"],
            batch["state"],
            str(counts["completed"]),
            str(counts["failed"]),
            str(counts["total"]),
            clock_time(batch["deadline_at"]),
            batch["owner"],
        )
    console().print(table if table.row_count else "no batches")


def explain(
    subject: Annotated[str, typer.Argument(metavar="ID", help="Instance, batch or model.")],
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Tell the story of one id: every event in order, with its reason."""
    from hpcserve.cli.client import call, connect

    with connect(settings(config)) as client:
        answer = call(client, "GET", f"/hpcserve/v1/explain/{subject}")
    if as_json:
        print_json(answer)
        return
    say(f"{answer['subject']} {answer['id']}")
    for name, value in answer["facts"].items():
        if value not in (None, "", [], {}) and name != "id":
            say(f"  {name}: {value}")
    for line in answer["story"]:
        to = f" -> {line['to']}" if line["to"] and line["to"] != line["from"] else ""
        say(f"{clock_time(line['at'])}  {line['event']}{to}: {line['reason']}")


def plan(  # noqa: PLR0917 - typer makes options of arguments
    model: Annotated[str, typer.Option("--model", help="Model of the catalog.")],
    print_script: Annotated[
        bool, typer.Option("--print-script", help="Print the batch script of such an instance.")
    ] = False,
    rate: Annotated[
        str | None, typer.Option(help="Say how many GPUs so many requests need: 5/s, 300/min.")
    ] = None,
    ttft: Annotated[str, typer.Option(help="With --rate: first token within, 2s or 500ms.")] = "2s",
    engine: Annotated[
        str, typer.Option(help="With --rate: performance model, as in `hpcserve simulate`.")
    ] = "llama-8b-a100",
    tokens: Annotated[
        str, typer.Option(help="With --rate: mean tokens of a prompt and an answer.")
    ] = "256:277",
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Say what an instance of a model would ask of Slurm, and when it would start.

    With --rate also how many of them a rate needs, by a performance model.
    """
    from hpcserve.sim.sizing import plan_rate
    from hpcserve.wiring.cluster import plan_instance

    loaded = settings(config)
    spec, script, start_at = plan_instance(loaded, model)
    if print_script:
        say(script)
        return
    facts: dict[str, object] = {
        "partition": spec.partition,
        "qos": spec.qos,
        "account": spec.account,
        "nodes": spec.nodes,
        "gpus_per_node": spec.gpus_per_node,
        "cpus_per_node": spec.cpus_per_node,
        "memory_gib_per_node": spec.memory_gib_per_node,
        "time_limit_s": spec.time_limit_s,
        "would_start_at": start_at.isoformat() if start_at else None,
    }
    if rate is not None:
        facts |= plan_rate(
            spec.order.model, engine, tokens, rate, ttft, theta=loaded.scaling.theta_first
        )
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        say(f"{name}: {value if value is not None else 'the default'}")
