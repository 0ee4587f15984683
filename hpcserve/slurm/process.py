"""Naming a process so that a reused pid is not taken for it: pid, start tick and boot.

Read from /proc; a zombie counts as ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: fields of /proc/PID/stat after the command's closing bracket: state, ..., start time in ticks
_STATE, _START_TICKS = 0, 19


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """One process of this machine, for all time."""

    pid: int
    start_ticks: int
    boot_id: str

    @property
    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        stat = _stat(self.pid)
        return (
            stat is not None
            and stat[_STATE] not in {"Z", "X"}
            and int(stat[_START_TICKS]) == self.start_ticks
            and self.boot_id == boot_id()
        )


def identify(pid: int) -> ProcessId:
    """Name a running process.

    Raises:
        ProcessLookupError: there is none.

    """
    stat = _stat(pid)
    if stat is None:
        raise ProcessLookupError(pid)
    return ProcessId(pid=pid, start_ticks=int(stat[_START_TICKS]), boot_id=boot_id())


def boot_id() -> str:
    """Return what changes with every start of this machine."""
    return _BOOT_ID.read_text().strip()


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # the command may hold spaces and brackets
    return text.rpartition(")")[2].split()
