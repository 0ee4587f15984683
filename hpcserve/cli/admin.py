"""`hpcserve admin`: what operators do."""

from __future__ import annotations

from typing import Annotated

import typer

from hpcserve.cli.console import ConfigFile, Json, print_json, say, settings

app = typer.Typer(help="For operators.", no_args_is_help=True)
db = typer.Typer(help="The ledger's database.", no_args_is_help=True)
model = typer.Typer(help="Models.", no_args_is_help=True)
instance = typer.Typer(help="Instances.", no_args_is_help=True)
app.add_typer(db, name="db")
app.add_typer(model, name="model")
app.add_typer(instance, name="instance")


@db.command()
def upgrade(config: ConfigFile = None, as_json: Json = False) -> None:
    """Bring the database to this version's schema."""
    from hpcserve.wiring.site import upgrade_ledger

    before, after = upgrade_ledger(settings(config))
    if as_json:
        print_json({"before": before, "after": after})
    elif before == after:
        say(f"The ledger is at revision {after} already.")
    else:
        say(f"The ledger went from revision {before or 'none'} to {after}.")


@app.command("open")
def open_(config: ConfigFile = None, as_json: Json = False) -> None:
    """Open a site that `hpcserve down` closed."""
    _post("open", config, "The site is open.", as_json=as_json)


@model.command()
def retry(
    name: Annotated[str, typer.Argument(metavar="MODEL")],
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Forget a model's failures and let it be tried again."""
    _post(f"models/{name}/retry", config, f"{name} may be tried again.", as_json=as_json)


@instance.command()
def drain(
    instance_id: Annotated[str, typer.Argument(metavar="ID")],
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Let an instance finish what it has and end."""
    _post(f"instances/{instance_id}/drain", config, f"{instance_id} drains.", as_json=as_json)


@instance.command()
def stop(
    instance_id: Annotated[str, typer.Argument(metavar="ID")],
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """End an instance now; its batch requests go back to the queue."""
    _post(f"instances/{instance_id}/stop", config, f"{instance_id} is stopped.", as_json=as_json)


def _post(path: str, config: ConfigFile, done: str, *, as_json: bool) -> None:
    from hpcserve.cli.client import call, connect

    with connect(settings(config)) as client:
        answer = call(client, "POST", f"/hpcserve/v1/admin/{path}")
    if as_json:
        print_json(answer)
    else:
        say(done)
