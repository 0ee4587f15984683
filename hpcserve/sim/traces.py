"""Readers of public traces and of one's own; the kind is told from the columns.

Requests (`read_requests`): Azure LLM inference CSV (TIMESTAMP, ContextTokens, GeneratedTokens),
Mooncake JSONL (timestamp in ms, input_length, output_length), and one's own CSV (arrived_s,
prompt_tokens, output_tokens). Rates (`read_rates`): ServeGen's archive or folder, or one rate a
line. Idle GPUs (`read_idle`): Helios' per-minute CSV, plain or gzip, or one's own (time_s,
idle_gpus). Jobs (`read_waits`): a PWA SWF log. Every mistake is one sentence with file and line.
"""

from __future__ import annotations

import csv
import gzip
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import TypeVar

from hpcserve.errors import RequestError
from hpcserve.sim.slurm import Series, Wait

T = TypeVar("T")

#: ServeGen gives one rate for each so many seconds
SERVEGEN_WINDOW_S = 600.0


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace."""

    arrived_s: float
    prompt_tokens: int
    output_tokens: int


def read_requests(path: Path) -> tuple[TraceRequest, ...]:
    """Return the requests of a trace in the order of their arrival, the first at 0 s."""
    text = _text(path)
    if text.lstrip().startswith("{"):
        found = [_row(path, n, _mooncake, json_line) for n, json_line in _lines(text)]
    else:
        found = _csv(
            path,
            text,
            {
                ("TIMESTAMP", "ContextTokens", "GeneratedTokens"): _azure,
                ("arrived_s", "prompt_tokens", "output_tokens"): _own,
            },
        )
    if not found:
        raise RequestError(f"{path}: the trace has no requests.")
    found.sort(key=lambda r: r.arrived_s)
    first_s = found[0].arrived_s
    return tuple(
        TraceRequest(r.arrived_s - first_s, r.prompt_tokens, r.output_tokens) for r in found
    )


def read_rates(path: Path, kind: str = "m-small") -> tuple[tuple[float, float], ...]:
    """Return (duration s, requests/s) pieces: ServeGen's clients summed, or one rate a second."""
    if path.is_dir() or path.name.endswith((".tar.gz", ".tgz")):
        return _servegen(path, kind)
    return tuple(
        (1.0, _row(path, n, lambda line: max(0.0, float(line)), line))
        for n, line in _lines(_text(path))
    )


def read_idle(path: Path) -> Series:
    """Return the idle GPUs over time."""
    points = _csv(
        path,
        _text(path),
        {
            ("time", "idle_gpu_num"): lambda row: (
                datetime.fromisoformat(row["time"]).timestamp(),
                float(row["idle_gpu_num"]),
            ),
            ("time_s", "idle_gpus"): lambda row: (float(row["time_s"]), float(row["idle_gpus"])),
        },
    )
    return series(path, points)


def read_waits(path: Path) -> Wait:
    """Return a queue wait with the median and the 0.9 quantile of an SWF log's jobs."""
    waits, limits = [], []
    for number, line in _lines(_text(path)):
        if line.startswith(";"):
            continue
        wait_s, limit_s = _row(path, number, _swf, line)
        if wait_s >= 0:
            waits.append(wait_s)
        if limit_s > 0:
            limits.append(limit_s)
    if not waits:
        raise RequestError(f"{path}: no job of this SWF log has a wait time.")
    waits.sort()
    limits.sort()
    return Wait(
        p50_s=max(1.0, waits[len(waits) // 2]),
        p90_s=max(1.0, waits[int(0.9 * len(waits))]),
        limit_s=limits[len(limits) // 2] if limits else Wait().limit_s,
    )


def series(path: Path, points: list[tuple[float, float]]) -> Series:
    """Return points as a step function that begins at 0 s; equal neighbours are joined."""
    if not points:
        raise RequestError(f"{path}: the series has no rows.")
    points.sort()
    first_s = points[0][0]
    times, values = [0.0], [points[0][1]]
    for time_s, value in points[1:]:
        if value != values[-1]:
            times.append(time_s - first_s)
            values.append(value)
    last_gap_s = points[-1][0] - points[-2][0] if len(points) > 1 else 60.0
    period_s = points[-1][0] - first_s + last_gap_s
    return Series(times_s=tuple(times), values=tuple(values), period_s=period_s)


def _servegen(path: Path, kind: str) -> tuple[tuple[float, float], ...]:
    total: dict[float, float] = {}
    for name, text in _members(path, f"/{kind}/"):
        for number, line in _lines(text):
            when_s, rate = _row(Path(name), number, _servegen_row, line)
            total[when_s] = total.get(when_s, 0.0) + rate
    if not total:
        raise RequestError(f"{path}: there is no ServeGen workload {kind!r} in it.")
    return tuple((SERVEGEN_WINDOW_S, total[when_s]) for when_s in sorted(total))


def _members(path: Path, part: str) -> Iterable[tuple[str, str]]:
    if path.is_dir():
        for file in sorted(path.rglob("*-trace.csv")):
            if part in str(file):
                yield str(file), file.read_text(encoding="utf-8")
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if part in member.name and member.name.endswith("-trace.csv"):
                    opened = archive.extractfile(member)
                    if opened is not None:
                        yield member.name, opened.read().decode()
    except (OSError, tarfile.TarError) as error:
        raise RequestError(f"{path}: cannot be read as an archive: {error}.") from error


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except OSError as error:
        why = error.strerror or str(error)
        raise RequestError(f"{path}: the trace cannot be read: {why}.") from error
    except (UnicodeDecodeError, EOFError) as error:
        raise RequestError(f"{path}: the trace is not text: {error}.") from error


def _lines(text: str) -> Iterable[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def _csv(
    path: Path, text: str, kinds: Mapping[tuple[str, ...], Callable[[Mapping[str, str]], T]]
) -> list[T]:
    reader = csv.DictReader(StringIO(text))
    columns = reader.fieldnames or ()
    for wanted, convert in kinds.items():
        if all(column in columns for column in wanted):
            return [_row(path, reader.line_num, convert, row) for row in reader]
    choices = " or ".join(", ".join(wanted) for wanted in kinds)
    raise RequestError(f"{path}: the first line must name the columns {choices}.")


R = TypeVar("R")


def _row(path: Path, number: int, convert: Callable[[R], T], row: R) -> T:
    try:
        return convert(row)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise RequestError(
            f"{path}, line {number}: this is no row of such a trace ({error})."
        ) from (error)


def _azure(row: Mapping[str, str]) -> TraceRequest:
    when = datetime.fromisoformat(row["TIMESTAMP"].strip()[:26])
    return TraceRequest(
        when.timestamp(), int(row["ContextTokens"]), max(1, int(row["GeneratedTokens"]))
    )


def _own(row: Mapping[str, str]) -> TraceRequest:
    return TraceRequest(
        float(row["arrived_s"]), int(row["prompt_tokens"]), max(1, int(row["output_tokens"]))
    )


def _mooncake(line: str) -> TraceRequest:
    row = json.loads(line)
    return TraceRequest(
        float(row["timestamp"]) / 1000, int(row["input_length"]), max(1, int(row["output_length"]))
    )


def _servegen_row(line: str) -> tuple[float, float]:
    cells = line.split(",")
    return float(cells[0]), float(cells[1] or 0)


def _swf(line: str) -> tuple[float, float]:
    cells = line.split()
    # field 3 is the wait, field 9 the requested time; -1 is unknown
    return float(cells[2]), float(cells[8])
