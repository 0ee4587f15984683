"""One line a finished inference request, written in groups.

Lines wait in memory and leave with one write each sweep, or when enough of them wait: a system call
for each line would cost more than the rest of the accounting.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime

#: lines after which they are written at once
GROUP = 256


class AccessLog:
    """Collects lines and hands them on as bytes."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        """Take what writes a group of lines."""
        self._write = write
        self._lines: list[str] = []
        self._stamp = ""
        self._stamp_s = -1

    def add(self, at_s: float, fields: str) -> None:
        """Add one line, *at_s* being seconds since the epoch."""
        second = int(at_s)
        if second != self._stamp_s:
            self._stamp_s = second
            self._stamp = datetime.fromtimestamp(second, UTC).isoformat()
        self._lines.append(f"{self._stamp} {fields}\n")
        if len(self._lines) >= GROUP:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._lines:
            lines, self._lines = self._lines, []
            self._write("".join(lines).encode(errors="backslashreplace"))


def to_descriptor(descriptor: int) -> Callable[[bytes], object]:
    """Return a writer to an open file descriptor."""
    return lambda group: os.write(descriptor, group)
