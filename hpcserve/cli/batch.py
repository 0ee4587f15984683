"""`hpcserve batch`: submit prompt files, follow them, fetch results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpcserve.cli import look
from hpcserve.cli.console import ConfigFile, Json, clock_time, note, print_json, say, settings
from hpcserve.cli.submit import Within, submit

app = typer.Typer(help="Batches: prompt files with a deadline.", no_args_is_help=True)
app.command()(submit)

BatchId = Annotated[str, typer.Argument(metavar="ID", help="The batch.")]


@app.command()
def status(batch_id: BatchId, config: ConfigFile = None, as_json: Json = False) -> None:
    """Show where a batch is, and when it will be done."""
    from hpcserve.cli.client import connect
    from hpcserve.cli.progress import TERMINAL, describe, end, look

    with connect(settings(config)) as client:
        progress = look(client, batch_id)
    batch = progress["batch"]
    if as_json:
        print_json(progress)
        return
    for line in end(batch) if batch["status"] in TERMINAL else describe(progress):
        say(line)


@app.command()
def wait(batch_id: BatchId, config: ConfigFile = None, as_json: Json = False) -> None:
    """Follow a batch until it is done; exit 0 only when it completed."""
    from hpcserve.cli.client import connect
    from hpcserve.cli.progress import conclude, follow

    with connect(settings(config)) as client:
        conclude(follow(client, batch_id, quiet=as_json)["batch"], as_json=as_json)


@app.command()
def results(
    batch_id: BatchId,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; standard output if none.")
    ] = None,
    errors: Annotated[
        bool, typer.Option("--errors", help="The lines that failed, and why, in their place.")
    ] = False,
    config: ConfigFile = None,
) -> None:
    """Fetch what is finished so far, one JSON line a request, in input order.

    Once the batch has ended, a file that holds the beginning is continued.
    """
    from hpcserve.cli.client import connect
    from hpcserve.cli.download import Download

    with connect(settings(config)) as client:
        download = Download(client, batch_id, kind="errors" if errors else "output")
        if output is None:
            download.to_stdout()
        elif kept := download.to_file(output):
            note(f"{output}: {kept} bytes were there already.")


@app.command()
def cancel(batch_id: BatchId, config: ConfigFile = None, as_json: Json = False) -> None:
    """Cancel a batch; finished lines are kept."""
    from hpcserve.cli.client import call, connect

    with connect(settings(config)) as client:
        batch = call(client, "POST", f"/v1/batches/{batch_id}/cancel")
    if as_json:
        print_json(batch)
    else:
        say(f"{batch_id} is {batch['status']}.")


@app.command()
def retry(
    batch_id: BatchId, within: Within = "24h", config: ConfigFile = None, as_json: Json = False
) -> None:
    """Submit the lines that failed, expired or were cancelled as a new batch."""
    from hpcserve.cli.client import call, connect

    with connect(settings(config)) as client:
        body = {"completion_window": within}
        batch = call(client, "POST", f"/hpcserve/v1/batches/{batch_id}/retry", body=body)
    if as_json:
        print_json(batch)
    else:
        say(batch["id"])
        note(f"`hpcserve batch wait {batch['id']}` follows it.")


@app.command("list")
def list_(config: ConfigFile = None, as_json: Json = False) -> None:
    """List your batches, newest first."""
    from datetime import UTC, datetime

    from hpcserve.cli.client import call, connect

    with connect(settings(config)) as client:
        answer = call(client, "GET", "/v1/batches?limit=100")
    if as_json:
        print_json(answer)
        return
    for batch in answer["data"]:
        counts = batch["request_counts"]
        failed = f", {counts['failed']} failed" if counts["failed"] else ""
        created_at = datetime.fromtimestamp(batch["created_at"], UTC).isoformat()
        say(
            f"{batch['id']}  {batch['status']:<11}  {clock_time(created_at)}  "
            f"{batch['model'] or '-'}  {counts['completed']}/{counts['total']}{failed}"
        )


app.command()(look.explain)
