"""`hpcserve simulate`: what a policy would do for a workload on a cluster, before anyone pays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpcserve.cli.console import Json, console, note, print_json
from hpcserve.errors import RequestError

if TYPE_CHECKING:
    from hpcserve.sim.outcome import Outcome


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="simulate")(simulate)


def simulate(  # noqa: PLR0917 - typer makes options of arguments
    workload: Annotated[
        str,
        typer.Option(
            help="Trace (Azure CSV, Mooncake JSONL, ServeGen archive, arrived_s CSV, one rate a "
            "line in .txt) or gamma:RATE[:CV]."
        ),
    ],
    cluster: Annotated[
        str, typer.Option(help="GPUS, GPUS:P50_S:P90_S (queue wait) or GPUS:FILE.swf.")
    ],
    policy: Annotated[
        str, typer.Option(help="Scaling policies, comma-separated; `all` compares them.")
    ] = "backpressure",
    seed: Annotated[int, typer.Option(help="The same seed makes the same history.")] = 1,
    seeds: Annotated[int, typer.Option(min=1, help="So many seeds, from the first on.")] = 1,
    days: Annotated[float, typer.Option(help="Simulated days.")] = 1.0,
    batch: Annotated[
        list[str] | None, typer.Option(help="REQUESTS:WINDOW_H[:AT_H], each day; repeatable.")
    ] = None,
    opportunistic: Annotated[
        Path | None, typer.Option(help="Idle GPUs of a preemptible partition (Helios CSV).")
    ] = None,
    engine: Annotated[str, typer.Option(help="Performance model.")] = "llama-8b-a100",
    gpus_per_instance: Annotated[int, typer.Option(help="GPUs of one instance.")] = 1,
    max_instances: Annotated[int | None, typer.Option(help="At most so many instances.")] = None,
    scale: Annotated[float, typer.Option(help="Rates of the workload times this.")] = 1.0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write a report here, JSON and CSV beside it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Simulate scaling policies: SLO attainment, GPU-hours and waste, side by side."""
    from hpcserve.policy.scaling.registry import SCALERS
    from hpcserve.sim.report import document, write
    from hpcserve.sim.scenario import Asked, scenario_of
    from hpcserve.sim.study import Study

    names = list(SCALERS) if policy == "all" else [name.strip() for name in policy.split(",")]
    for name in names:
        if name not in SCALERS:
            raise RequestError(
                f"--policy: {name!r} is not known; choose of {', '.join(SCALERS)}, or all."
            )
    asked = Asked(
        workload=workload,
        cluster=cluster,
        batches=tuple(batch or ()),
        opportunistic=opportunistic,
        engine=engine,
        gpus_per_instance=gpus_per_instance,
        max_instances=max_instances,
        scale=scale,
        days=days,
    )
    outcomes = [
        Study(scenario_of(asked, each), name, each).run()
        for name in names
        for each in range(seed, seed + seeds)
    ]
    if output is not None:
        try:
            made = write(outcomes, output)
        except OSError as error:
            raise RequestError(f"{output}: cannot be written: {error.strerror}.") from error
        note(f"written: {', '.join(str(path) for path in made)}")
    if as_json:
        print_json(document(outcomes))
        return
    _print(outcomes)


def _print(outcomes: list[Outcome]) -> None:
    from rich.table import Table

    from hpcserve.sim.report import table

    rows = table(outcomes)
    shown = Table(box=None)
    # figures down, runs across: a terminal is narrow
    shown.add_column("")
    for policy, seed, *_ in rows[1:]:
        shown.add_column(f"{policy} {seed}", justify="right")
    for cells in list(zip(*rows, strict=True))[2:]:
        shown.add_row(cells[0].replace("_", " "), *cells[1:])
    console().print(shown)
