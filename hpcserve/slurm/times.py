"""Slurm's ways to write times and durations, read as UTC.

Commands run with `TZ=UTC` and `SLURM_TIME_FORMAT=standard` (`commands`), so what they print is UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime

_NEVER = frozenset({"", "N/A", "NONE", "Unknown", "None", "(null)"})
_NO_LIMIT = frozenset({"UNLIMITED", "INFINITE", "infinite", "NOT_SET", "n/a", "N/A", ""})


def parse_time(text: str) -> datetime | None:
    """Read `2026-11-20T20:12:02`; None where Slurm says that there is no such time."""
    return None if text in _NEVER else datetime.fromisoformat(text).replace(tzinfo=UTC)


def parse_duration_s(text: str) -> int | None:
    """Read `[days-]hours:minutes:seconds` as seconds; None for no limit."""
    if text in _NO_LIMIT:
        return None
    days, _, clock = text.rpartition("-")
    seconds = 0
    for part in clock.split(":"):
        seconds = seconds * 60 + int(part)
    return int(days or 0) * 86_400 + seconds


def minutes(seconds: float) -> int:
    """Return whole minutes, Slurm's unit of time limits, rounded up and at least one."""
    return max(1, -(-int(seconds) // 60))
