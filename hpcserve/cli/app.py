"""The command tree, and how an error ends a command."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hpcserve import __version__
from hpcserve.cli import admin, batch, keys, look, serve, simulate
from hpcserve.errors import HpcserveError, RefusedError

app = typer.Typer(
    name="hpcserve",
    help="Serve large language models on Slurm, interactive and batch, from one pool of GPUs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(batch.app, name="batch")
app.add_typer(keys.app, name="keys")
app.add_typer(admin.app, name="admin")
look.register(app)
serve.register(app)
simulate.register(app)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    """Serve large language models on Slurm, interactive and batch, from one pool of GPUs."""
    if version:
        print(__version__)  # noqa: T201 - what was asked for
        raise typer.Exit


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        app()
    except RefusedError as error:
        _end(error, 3)
    except HpcserveError as error:
        _end(error, 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # the reader of our output (`head`) has seen enough
        sys.stderr.close()
        sys.exit(0)


def _end(error: HpcserveError, code: int) -> None:
    print(f"hpcserve: {error.message}", file=sys.stderr)  # noqa: T201 - for the user
    sys.exit(code)
