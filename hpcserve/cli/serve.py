"""Commands that run until they are told to end: `up`, `controller`, `gateway`, `fake-engine`."""

from __future__ import annotations

import time

import typer

from hpcserve.cli.console import ConfigFile, Json, print_json, say, settings
from hpcserve.errors import BackendError

#: a cancelled job may take Slurm's KillWait (30 s) and more to end
DOWN_TIMEOUT_S = 120.0
POLL_S = 0.3


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    app.command()(up)
    app.command()(down)
    app.command()(controller)
    app.command()(gateway)
    app.command(
        "fake-engine",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        add_help_option=False,
    )(fake_engine)


def up(config: ConfigFile = None) -> None:
    """Run controller and gateway in one process; opens the site if it was closed."""
    from hpcserve.wiring.processes import run

    run(settings(config), controller=True, gateway=True, opening=True)


def down(config: ConfigFile = None, as_json: Json = False) -> None:
    """End all instances and submit no more; then `hpcserve up` may be ended too."""
    from hpcserve.cli.client import call, connect

    with connect(settings(config)) as client:
        call(client, "POST", "/hpcserve/v1/admin/close")
        deadline = time.monotonic() + DOWN_TIMEOUT_S
        while instances := call(client, "GET", "/hpcserve/v1/status")["instances"]:
            if time.monotonic() > deadline:
                names = ", ".join(instance["id"] for instance in instances)
                raise BackendError(
                    f"Not ended within {DOWN_TIMEOUT_S:.0f} s: {names}; `hpcserve status` says "
                    "where they are.",
                    retryable=True,
                )
            time.sleep(POLL_S)
    if as_json:
        print_json({"instances": []})
    else:
        say("No instance is left; batches wait where they are until the site is opened again.")


def controller(config: ConfigFile = None) -> None:
    """Run a controller; of several one leads."""
    from hpcserve.wiring.processes import run

    run(settings(config), controller=True, gateway=False)


def gateway(config: ConfigFile = None) -> None:
    """Run a gateway."""
    from hpcserve.wiring.processes import run

    run(settings(config), controller=False, gateway=True)


def fake_engine(context: typer.Context) -> None:
    """Run the stand-in engine; `hpcserve fake-engine --help` lists its options."""
    from hpcserve.engines.fake.__main__ import main

    main(context.args)
