"""Commands that run until they are told to end: `up`, `controller`, `gateway`, `fake-engine`."""

from __future__ import annotations

import typer

from hpcserve.cli.console import ConfigFile, settings


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    app.command()(up)
    app.command()(controller)
    app.command()(gateway)
    app.command(
        "fake-engine",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        add_help_option=False,
    )(fake_engine)


def up(config: ConfigFile = None) -> None:
    """Run controller and gateway in one process."""
    from hpcserve.wiring.processes import run

    run(settings(config), controller=True, gateway=True)


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
