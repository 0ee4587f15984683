"""The history of a run: every line feeds the digest, the last are kept for a failure."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, deque

#: lines that a failure shows
_SHOWN = 30


class Trace:
    """What happened, in order."""

    def __init__(self) -> None:
        """Begin empty."""
        self._hash = hashlib.sha256()
        self._last: deque[str] = deque(maxlen=_SHOWN)
        self.counts: Counter[str] = Counter()

    def add(self, what: str, about: object, detail: str = "") -> None:
        """Note one event at the present time."""
        now_s = asyncio.get_running_loop().time()
        line = f"{now_s:.3f} {what} {about} {detail}".rstrip()
        self._hash.update(line.encode())
        self._last.append(line)
        self.counts[what] += 1

    def digest(self) -> str:
        """Return the fingerprint of all lines."""
        return self._hash.hexdigest()

    def tail(self) -> str:
        """Return the last lines."""
        return "\n".join(self._last)
