"""The report of a simulation: one self-contained page, with the same numbers as JSON and CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from html import escape
from io import StringIO
from itertools import pairwise
from pathlib import Path

from hpcserve.sim.outcome import Outcome, Sample
from hpcserve.sim.svg import plot

#: actions that the page lists for each policy; the JSON has them all
_SHOWN = 40

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .7rem;text-align:right}
th:first-child,td:first-child{text-align:left}tr:nth-child(even){background:#f4f4f4}
svg{width:100%;margin:.5rem 0;font:10px system-ui,sans-serif}.grid{stroke:#ddd}
.title{font-weight:600;font-size:12px}li{margin:.2rem 0}
"""


def table(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """Return a heading and one row a run."""
    if not outcomes:
        return []
    names = list(outcomes[0].figures())
    rows = [("policy", "seed", *names)]
    rows += [
        (o.policy, str(o.seed), *(f"{o.figures()[name]:,}" for name in names)) for o in outcomes
    ]
    return rows


def page(outcomes: Sequence[Outcome]) -> str:
    """Return the HTML."""
    title = escape(outcomes[0].scenario) if outcomes else "nothing"
    return "".join(
        [
            "<!doctype html><html lang=en><meta charset=utf-8>",
            f"<title>hpcserve simulate: {title}</title><style>{_STYLE}</style>",
            f"<h1>{title}</h1>",
            _table(table(outcomes)),
            *(_section(outcome) for outcome in outcomes),
            "</html>\n",
        ]
    )


def document(outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """Return what the JSON says."""
    return [
        {
            "scenario": o.scenario,
            "policy": o.policy,
            "seed": o.seed,
            "figures": o.figures(),
            "gpu_hours": o.gpu_hours,
            "counts": o.counts,
            "digest": o.digest(),
            "actions": [asdict(note) for note in o.notes],
        }
        for o in outcomes
    ]


def samples_csv(outcomes: Sequence[Outcome]) -> str:
    """Return the series of all runs."""
    text = StringIO()
    writer = csv.writer(text)
    names = [f.name for f in fields(Sample)]
    writer.writerow(["policy", "seed", *names])
    for o in outcomes:
        writer.writerows([o.policy, o.seed, *(getattr(s, n) for n in names)] for s in o.samples)
    return text.getvalue()


def write(outcomes: Sequence[Outcome], path: Path) -> tuple[Path, ...]:
    """Write page, JSON and CSV beside one another; return where."""
    made = (path, path.with_suffix(".json"), path.with_suffix(".csv"))
    path.write_text(page(outcomes), encoding="utf-8")
    made[1].write_text(json.dumps(document(outcomes), indent=1), encoding="utf-8")
    made[2].write_text(samples_csv(outcomes), encoding="utf-8")
    return made


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Return the rows turned, so that many figures stand under few policies."""
    turned = list(zip(*rows, strict=True))
    lines = []
    for index, cells in enumerate(turned):
        tag = "th" if index == 0 else "td"
        words = "".join(f"<{tag}>{escape(cell.replace('_', ' '))}</{tag}>" for cell in cells)
        lines.append(f"<tr>{words}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _section(outcome: Outcome) -> str:
    samples = outcome.samples
    hours = max((s.at_s for s in samples), default=0.0) / 3600 or 1.0

    def series(name: str) -> list[tuple[float, float]]:
        return [(s.at_s, float(getattr(s, name))) for s in samples]

    kept = [
        (b.at_s, (b.ttft_kept - a.ttft_kept) / (b.chat_total - a.chat_total))
        for a, b in pairwise(samples)
        if b.chat_total > a.chat_total
    ]
    rate = [
        (b.at_s, 3600 * (b.actions - a.actions) / (b.at_s - a.at_s)) for a, b in pairwise(samples)
    ]
    plots = [
        plot(
            "Instances by role",
            "READY, or on the way",
            [(name, series(name)) for name in ("mixed", "batch", "starting", "queued")],
            hours=hours,
        ),
        plot("GPUs held", "GPUs", [("gpus", series("gpus"))], hours=hours),
        plot(
            "Interactive requests",
            "in flight",
            [("served", series("chat")), ("waiting", series("waiting"))],
            hours=hours,
        ),
        plot(
            "First tokens in time",
            "ratio",
            [("kept", [(t, min(1, v)) for t, v in kept])],
            hours=hours,
        ),
        plot("Open batch requests", "requests", [("open", series("backlog"))], hours=hours),
        plot("Scaling actions", "an hour", [("actions", rate)], hours=hours),
    ]
    shown = "".join(
        f"<li>{note.at_s / 3600:.2f} h: {escape(note.action)}: {escape(note.reason)}</li>"
        for note in outcome.notes[:_SHOWN]
    )
    return (
        f"<h2>{escape(outcome.policy)}, seed {outcome.seed}</h2>{''.join(plots)}"
        f"<details><summary>The first {min(_SHOWN, len(outcome.notes))} of "
        f"{len(outcome.notes)} scaling actions</summary><ul>{shown}</ul></details>"
    )
