"""`hpcserve batch`: submit prompt files, follow them, fetch results."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpcserve.cli.console import (
    ConfigFile,
    Json,
    clock_time,
    console,
    duration,
    note,
    print_json,
    say,
    settings,
)
from hpcserve.errors import RequestError

if TYPE_CHECKING:
    import httpx

app = typer.Typer(help="Batches: prompt files with a deadline.", no_args_is_help=True)

BatchId = Annotated[str, typer.Argument(metavar="ID", help="The batch.")]

#: between two looks at a batch that is waited for, s
POLL_S = 0.5
#: OpenAI's words for a batch to which nothing more will happen
TERMINAL = ("completed", "failed", "expired", "cancelled")


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(help="JSONL in OpenAI's batch format.")],
    within: Annotated[
        str, typer.Option("--within", help="Completion window: from 1h to 30d.")
    ] = "24h",
    wait_: Annotated[
        bool, typer.Option("--wait", help="Stay and show the progress until it is done.")
    ] = False,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Submit a prompt file and print the batch's id.

    Over the Unix socket the file is read where it lies: leave it there, unchanged, until the batch
    is done. From elsewhere it is uploaded.
    """
    from hpcserve.cli.client import call, connect

    with connect(settings(config)) as client:
        uploaded = _bring(client, file)
        route = _first_route(file)
        body = {"input_file_id": uploaded["id"], "endpoint": route, "completion_window": within}
        batch = call(client, "POST", "/v1/batches", body=body)
        if wait_:
            note(batch["id"])
            batch = _follow(client, batch["id"], quiet=as_json)
    if as_json:
        print_json(batch)
    elif wait_:
        _end(batch)
    else:
        say(batch["id"])
        note(f"`hpcserve batch wait {batch['id']}` follows it.")
    if wait_:
        _exit(batch)


def _bring(client: httpx.Client, file: Path) -> dict[str, Any]:
    """Register *file* by its path on the login node, or upload it from elsewhere."""
    import os

    from hpcserve.cli.client import call, check, unreachable

    if not file.is_file():
        raise RequestError(f"{file}: there is no such file; give the path of a JSONL file.")
    if "HPCSERVE_URL" not in os.environ:
        return call(client, "POST", "/hpcserve/v1/files", body={"path": str(file.resolve())})
    import httpx

    with file.open("rb") as stream:
        try:
            response = client.post(
                "/v1/files",
                data={"purpose": "batch"},
                files={"file": (file.name, stream, "application/jsonl")},
                timeout=None,
            )
        except httpx.TransportError as error:
            raise unreachable(error) from error
    check(response)
    answer: dict[str, Any] = response.json()
    return answer


def _first_route(file: Path) -> str:
    """Return the url of the first line; the server checks it and all the others."""
    import json

    with file.open("rb") as stream:
        first = stream.readline(1 << 20)
    try:
        url = json.loads(first)["url"]
    except (ValueError, TypeError, KeyError):
        return "/v1/chat/completions"
    return str(url)


@app.command()
def status(batch_id: BatchId, config: ConfigFile = None, as_json: Json = False) -> None:
    """Show where a batch is."""
    from hpcserve.cli.client import call, connect

    with connect(settings(config)) as client:
        batch = call(client, "GET", f"/v1/batches/{batch_id}")
    if as_json:
        print_json(batch)
    else:
        _end(batch)


@app.command()
def wait(batch_id: BatchId, config: ConfigFile = None, as_json: Json = False) -> None:
    """Follow a batch until it is done; exit 0 only when it completed."""
    from hpcserve.cli.client import connect

    with connect(settings(config)) as client:
        batch = _follow(client, batch_id, quiet=as_json)
    if as_json:
        print_json(batch)
    else:
        _end(batch)
    _exit(batch)


@app.command()
def results(
    batch_id: BatchId,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; standard output if none.")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Fetch what is finished so far, in input order, one JSON line a request."""
    import httpx

    from hpcserve.cli.client import check, connect, unreachable

    with connect(settings(config)) as client:
        target = sys.stdout.buffer if output is None else output.open("wb")
        path = f"/hpcserve/v1/batches/{batch_id}/results"
        try:
            with client.stream("GET", path, timeout=None) as response:
                check(response)
                for chunk in response.iter_bytes():
                    target.write(chunk)
        except httpx.TransportError as error:
            raise unreachable(error) from error
        finally:
            target.flush()
            if output is not None:
                target.close()


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


@app.command("list")
def list_(config: ConfigFile = None, as_json: Json = False) -> None:
    """List your batches, newest first."""
    from hpcserve.cli.client import call, connect

    with connect(settings(config)) as client:
        answer = call(client, "GET", "/v1/batches?limit=100")
    if as_json:
        print_json(answer)
        return
    for batch in answer["data"]:
        counts = batch["request_counts"]
        say(
            f"{batch['id']}  {batch['status']:<11}  {counts['completed']}/{counts['total']}"
            f"  {clock_time(_iso(batch['created_at']))}"
        )


def _follow(client: httpx.Client, batch_id: str, *, quiet: bool) -> dict[str, Any]:
    """Poll until the batch is terminal, with a progress bar on a terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from hpcserve.cli.client import call

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console(),
        disable=quiet,
    )
    with bar:
        task = bar.add_task("validating", total=None)
        while True:
            batch = call(client, "GET", f"/v1/batches/{batch_id}")
            counts = batch["request_counts"]
            failed = f", {counts['failed']} failed" if counts["failed"] else ""
            bar.update(
                task,
                description=batch["status"] + failed,
                total=counts["total"] or None,
                completed=counts["completed"] + counts["failed"],
            )
            if batch["status"] in TERMINAL:
                return batch
            time.sleep(POLL_S)


def _end(batch: dict[str, Any]) -> None:
    """Print where a batch is, and what is wrong with it."""
    counts = batch["request_counts"]
    say(
        f"{batch['id']} is {batch['status']}: {counts['completed']} done, {counts['failed']} "
        f"failed, {counts['total']} in all"
    )
    if batch["status"] not in TERMINAL and batch.get("expires_at"):
        say(f"its window closes in {duration(batch['expires_at'] - time.time())}")
    for error in (batch.get("errors") or {}).get("data", []):
        line = f"line {error['line']}: " if error.get("line") else ""
        say(f"  {line}{error['message']} ({error['code']})")


def _exit(batch: dict[str, Any]) -> None:
    if batch["status"] != "completed":
        raise typer.Exit(1)


def _iso(seconds: float | None) -> str | None:
    from datetime import UTC, datetime

    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
