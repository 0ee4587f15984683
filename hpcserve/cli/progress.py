"""How `hpcserve batch wait` and `submit` show a batch: a few lines, live on a terminal."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Protocol

import httpx
import typer

from hpcserve.cli.client import call
from hpcserve.cli.console import clock_time, duration, note, print_json, say
from hpcserve.errors import BackendError

Progress = dict[str, Any]

#: OpenAI's words for a batch to which nothing more will happen
TERMINAL = ("completed", "failed", "expired", "cancelled")
#: between two looks, s
POLL_S = 0.5
#: a gateway may be away for so long, s: it is restarted, or another takes over
AWAY_S = 120.0
#: between two lines where there is no terminal, s
_QUIET_S = 10.0


def look(client: httpx.Client, batch_id: str) -> Progress:
    """Return how a batch goes."""
    return call(client, "GET", f"/hpcserve/v1/batches/{batch_id}/progress")


def follow(client: httpx.Client, batch_id: str, *, quiet: bool) -> Progress:
    """Show a batch until nothing more will happen to it, and return it."""
    answered_s = time.monotonic()
    with _screen(quiet=quiet) as screen:
        while True:
            try:
                progress = look(client, batch_id)
            except BackendError as error:
                if not error.retryable or time.monotonic() - answered_s > AWAY_S:
                    raise
                screen.show([f"{error.message} Trying again."])
            else:
                answered_s = time.monotonic()
                if progress["batch"]["status"] in TERMINAL:
                    return progress
                screen.show(describe(progress))
            time.sleep(POLL_S)


def until_estimated(client: httpx.Client, batch_id: str, limit_s: float) -> Progress:
    """Return how a batch goes once it has an estimate or is over, or at the end of patience."""
    end_s = time.monotonic() + limit_s
    while True:
        progress = look(client, batch_id)
        known = progress["estimate"] or progress["batch"]["status"] in TERMINAL
        if known or time.monotonic() > end_s:
            return progress
        time.sleep(POLL_S / 5)


def describe(progress: Progress) -> list[str]:
    """Return the lines that tell how a batch goes."""
    batch, estimate = progress["batch"], progress["estimate"]
    lines = [f"{batch['status']}: {_counts(batch)}{_pace(estimate)}"]
    if batch["status"] in ("validating", "in_progress"):
        lines.append(eta(progress))
        lines.append(f"{_instances(progress)}; no more because {progress['why_not_more']}")
    return lines if progress["why_not_more"] else lines[:2]


def eta(progress: Progress) -> str:
    """Return when a batch will be done, beside its deadline."""
    estimate = progress["estimate"]
    closes = datetime.fromtimestamp(progress["batch"]["expires_at"]).astimezone()
    if estimate is None:
        return f"no estimate yet; its window closes {clock_time(closes.isoformat())}"
    p90_at = datetime.fromisoformat(estimate["p90_at"])
    spare_s = (closes - p90_at).total_seconds()
    verdict = f"{duration(spare_s)} before" if spare_s >= 0 else f"{duration(-spare_s)} AFTER"
    return (
        f"done by {clock_time(estimate['p50_at'])} (p50), {clock_time(estimate['p90_at'])} (p90), "
        f"{verdict} its window closes"
    )


def price(progress: Progress) -> str:
    """Return what a batch will cost and where it will run."""
    estimate = progress["estimate"]
    hours = ""
    if estimate is not None:
        gpus = estimate["gpus_per_instance"]
        amount, unit = estimate["instance_hours"] * (gpus or 1), "GPU" if gpus else "instance"
        hours = f"about {amount:.2g} {unit}-hours, "
    return f"{hours}on the {progress['where'].removeprefix('the ')}"


def end(batch: dict[str, Any]) -> list[str]:
    """Return the lines that tell how a batch ended."""
    counts = batch["request_counts"]
    done = f"{counts['completed']} done, {counts['failed']} failed, {counts['total']} in all"
    lines = [f"{batch['id']} is {batch['status']}: {done}"]
    for error in (batch["errors"] or {"data": []})["data"]:
        line = f"line {error['line']}: " if error["line"] else ""
        lines.append(f"  {line}{error['message']} ({error['code']})")
    if counts["failed"]:
        lines.append(
            f"`hpcserve batch results {batch['id']} --errors` says why lines failed, "
            f"`hpcserve batch retry {batch['id']}` submits them again."
        )
    return lines


def conclude(batch: dict[str, Any], *, as_json: bool) -> None:
    """Print how a batch ended, and exit with 1 unless it completed."""
    if as_json:
        print_json(batch)
    else:
        for line in end(batch):
            say(line)
    if batch["status"] != "completed":
        raise typer.Exit(1)


def _counts(batch: dict[str, Any]) -> str:
    counts = batch["request_counts"]
    if batch["status"] == "validating":
        return f"{batch['hpcserve']['validated_lines']} lines are read"
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    return f"{counts['completed']} of {counts['total']} done{failed}"


def _pace(estimate: dict[str, Any] | None) -> str:
    if estimate is None or not estimate["lines_per_s"]:
        return ""
    return (
        f", {estimate['lines_per_s']:.3g} lines/s, "
        f"{estimate['output_tokens_per_s']:.0f} output tokens/s"
    )


def _instances(progress: Progress) -> str:
    states = Counter(instance["state"] for instance in progress["instances"])
    if not states:
        return "no instance is at work"
    return "instances: " + ", ".join(f"{count} {state}" for state, count in states.items())


class _Screen(Protocol):
    def show(self, lines: list[str]) -> None: ...


class _Live:
    """Rewrites its lines in place."""

    def __init__(self) -> None:
        from rich.live import Live

        self.live = Live(auto_refresh=False, transient=True)

    def show(self, lines: list[str]) -> None:
        from rich.text import Text

        self.live.update(Text("\n".join(lines)), refresh=True)


class _Log:
    """Writes a line when the state changes, and now and then."""

    def __init__(self) -> None:
        self._last = ""
        self._next_s = 0.0

    def show(self, lines: list[str]) -> None:
        state = lines[0].partition(":")[0]
        now_s = time.monotonic()
        if state != self._last or now_s >= self._next_s:
            note("; ".join(lines))
            self._last, self._next_s = state, now_s + _QUIET_S


class _Nothing:
    def show(self, lines: list[str]) -> None:
        del lines


@contextmanager
def _screen(*, quiet: bool) -> Iterator[_Screen]:
    if quiet:
        yield _Nothing()
    elif not sys.stdout.isatty():
        yield _Log()
    else:
        screen = _Live()
        with screen.live:
            yield screen
