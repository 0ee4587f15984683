"""`hpcserve batch submit`: batch lines as they are, or rows of a table through a template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpcserve.cli.console import ConfigFile, Json, note, print_json, say, settings

if TYPE_CHECKING:
    import httpx

    from hpcserve.batching.template import Prompting
    from hpcserve.cli.prompts import Brought
    from hpcserve.config import Config

Within = Annotated[str, typer.Option("--within", help="Completion window: from 1h to 30d.")]

#: the check of the file and the first estimate are waited for so long, s
ESTIMATE_S = 3.0


def submit(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Lines of OpenAI's batch format; or, with --template, rows of CSV, TSV, JSONL or "
            "Parquet. `-` is standard input.",
        ),
    ],
    *,
    within: Within = "24h",
    model: Annotated[str, typer.Option("--model", help="Model of all requests.")] = "",
    template: Annotated[
        str, typer.Option("--template", help="Prompt of a row: 'Classify: {text}'.")
    ] = "",
    id_column: Annotated[
        str, typer.Option("--id-column", help="Column with the custom_id; else row-1, row-2...")
    ] = "",
    system: Annotated[str, typer.Option("--system", help="System prompt of all rows.")] = "",
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Longest answer to a row.")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=VALUE", help="Further field: temperature=0."),
    ] = None,
    endpoint: Annotated[
        str, typer.Option("--endpoint", help="Where rows are sent.")
    ] = "/v1/chat/completions",
    table_format: Annotated[
        str, typer.Option("--format", help="csv, tsv, jsonl or parquet; else by the file's name.")
    ] = "",
    wait_: Annotated[
        bool, typer.Option("--wait", help="Stay and show the progress until it is done.")
    ] = False,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Submit prompts and print the batch's id, when it will be done, and what it costs.

    A file of batch lines is read where it lies if you run the server yourself: leave it there,
    unchanged, until the batch is done. Everything else is uploaded.
    """
    from hpcserve.cli.client import call, connect
    from hpcserve.cli.progress import TERMINAL, conclude, end, follow, until_estimated

    path = None if file == "-" else Path(file)
    loaded = settings(config)
    prompting = None
    if template:
        if not model:
            raise typer.BadParameter("--template needs --model, the model that gets the prompts")
        prompting = _prompting(
            model=model,
            template=template,
            id_column=id_column,
            system=system,
            max_tokens=max_tokens,
            params=_params(param or []),
            endpoint=endpoint,
        )
    else:
        _only_rows(id_column=id_column, system=system, max_tokens=max_tokens, param=param)
    with connect(loaded) as client:
        brought = _bring(
            client,
            path,
            prompting=prompting,
            model=model,
            table_format=table_format,
            config=loaded,
        )
        body = {
            "input_file_id": brought.file_id,
            "endpoint": brought.route,
            "completion_window": within,
        }
        batch_id = call(client, "POST", "/v1/batches", body=body)["id"]
        progress = until_estimated(client, batch_id, ESTIMATE_S)
        is_over = progress["batch"]["status"] in TERMINAL
        if wait_:
            if not (as_json or is_over):
                _tell(progress)
            conclude(follow(client, batch_id, quiet=as_json)["batch"], as_json=as_json)
            return
    if as_json:
        print_json(progress["batch"])
    else:
        say(batch_id)
        if is_over:
            for line in end(progress["batch"]):
                note(line)
        else:
            _tell(progress)
            note(f"`hpcserve batch wait {batch_id}` follows it.")
    if progress["batch"]["status"] == "failed":
        raise typer.Exit(1)


def _prompting(
    *,
    model: str,
    template: str,
    id_column: str,
    system: str,
    max_tokens: int | None,
    params: dict[str, object],
    endpoint: str,
) -> Prompting:
    from hpcserve.batching.template import Prompting, Template

    return Prompting(
        model=model,
        template=Template(template),
        endpoint=endpoint,
        id_column=id_column or None,
        system=system or None,
        max_tokens=max_tokens,
        params=params,
    )


def _params(given: list[str]) -> dict[str, object]:
    """Return the values as JSON, or as text where they are none (`--param user=ada`)."""
    import json

    params: dict[str, object] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"--param {text!r}: write NAME=VALUE")
        try:
            params[name] = json.loads(value)
        except ValueError:
            params[name] = value
    return params


def _only_rows(**options: object) -> None:
    for name, value in options.items():
        if value:
            option = name.replace("_", "-")
            raise typer.BadParameter(f"--{option} is for rows of a table; it needs --template")


def _bring(
    client: httpx.Client,
    path: Path | None,
    *,
    prompting: Prompting | None,
    model: str,
    table_format: str,
    config: Config,
) -> Brought:
    from hpcserve.batching.tables import Kind, Table, kind_of
    from hpcserve.cli.prompts import bring_lines, bring_rows, opened

    limit = config.batching.max_line_bytes
    try:
        kind = Kind(table_format) if table_format else kind_of(path.name) if path else Kind.JSONL
    except ValueError:
        raise typer.BadParameter(
            f"--format {table_format!r}: choose one of {', '.join(Kind)}"
        ) from None
    if prompting is None:
        if kind not in (None, Kind.JSONL):
            raise typer.BadParameter(
                f"{path or 'standard input'} is a table: --template says what to ask of a row"
            )
        return bring_lines(client, path, model or None, max_line_bytes=limit)
    if kind is None:
        raise typer.BadParameter(f"{path}: --format says whether it is {', '.join(Kind)}")
    name = str(path) if path is not None else "standard input"
    with opened(path) as stream:
        table = Table(name=name, stream=stream, kind=kind, max_line_bytes=limit)
        return bring_rows(client, table, prompting)


def _tell(progress: dict[str, Any]) -> None:
    """Print what is known of a batch that has just begun."""
    from hpcserve.cli.progress import describe, eta, price

    batch = progress["batch"]
    if not batch["model"]:
        note(describe(progress)[0])
        return
    total = batch["request_counts"]["total"]
    note(f"{batch['id']}: {total} requests to {batch['model']}, {price(progress)}")
    note(eta(progress))
