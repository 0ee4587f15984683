"""`hpcserve keys`: API keys for laptops and notebooks."""

from __future__ import annotations

from typing import Annotated

import typer

from hpcserve.cli.console import ConfigFile, Json, clock_time, note, print_json, say, settings

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Option("--name", help="What it is for.")] = "",
    days: Annotated[int | None, typer.Option("--days", min=1, help="Valid for so long.")] = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it: this once."""
    from hpcserve.cli.client import call, connect

    body = {"name": name, "expires_in_s": None if days is None else days * 86400}
    with connect(settings(config)) as client:
        answer = call(client, "POST", "/hpcserve/v1/keys", body=body)
    if as_json:
        print_json(answer)
        return
    say(answer["key"])
    note(f"{answer['id']}: shown only now; keep it secret, `hpcserve keys revoke` ends it.")


@app.command("list")
def list_(config: ConfigFile = None, as_json: Json = False) -> None:
    """List your keys."""
    from hpcserve.cli.client import call, connect

    with connect(settings(config)) as client:
        answer = call(client, "GET", "/hpcserve/v1/keys")
    if as_json:
        print_json(answer)
        return
    for key in answer["data"]:
        end = "revoked" if key["revoked_at"] else clock_time(key["expires_at"])
        made = clock_time(key["created_at"])
        say(f"{key['id']}  {key['prefix']}...  {made}  {end}  {key['name']}")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID")],
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Revoke a key: every gateway refuses it within seconds."""
    from hpcserve.cli.client import call, connect

    with connect(settings(config)) as client:
        answer = call(client, "DELETE", f"/hpcserve/v1/keys/{key_id}")
    if as_json:
        print_json(answer)
        return
    say(f"{key_id} is revoked.")
