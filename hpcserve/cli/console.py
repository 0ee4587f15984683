"""What commands share: where the configuration is, and how answers are printed."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hpcserve.config import Config, load_config

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="Configuration file to read in place of the usual.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def settings(config: Path | None) -> Config:
    """Return the configuration of this call."""
    return load_config(file=config)


def console() -> Console:
    """Return a console that colours only on a terminal, and never wraps a pipe's lines."""
    terminal = sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=not terminal, width=None if terminal else 200)


def print_json(answer: object) -> None:
    """Print JSON for programs: one document, no colour."""
    sys.stdout.write(json.dumps(answer, indent=2) + "\n")


def say(line: str) -> None:
    """Print one line of an answer."""
    sys.stdout.write(line + "\n")


def note(line: str) -> None:
    """Print one line about an answer, apart from it."""
    sys.stderr.write(line + "\n")


def duration(seconds: float | None) -> str:
    """Return `3 h 20 min` and so on; `-` when unknown."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole < 120:  # noqa: PLR2004 - below two minutes seconds say more
        return f"{whole} s"
    minutes, hours = whole // 60 % 60, whole // 3600
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


def clock_time(text: str | None) -> str:
    """Return the local time of day of an ISO time, with the date when it is not today's."""
    if not text:
        return "-"
    at = datetime.fromisoformat(text).astimezone()
    near = abs(datetime.now().astimezone() - at) < timedelta(hours=12)
    return at.strftime("%H:%M:%S" if near else "%Y-%m-%d %H:%M")
