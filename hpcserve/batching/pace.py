"""How fast a batch goes now: the difference over the last seconds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime

#: looks back so far: long enough to be steady, short enough to follow
_WINDOW_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    at: datetime
    lines: int
    tokens: int


@dataclass(slots=True)
class Pace:
    """Readings of two counters over a short time."""

    _readings: deque[_Reading] = field(default_factory=deque)

    def add(self, at: datetime, *, lines: int, tokens: int) -> None:
        """Take a reading, and forget the oldest while younger ones span the window."""
        self._readings.append(_Reading(at=at, lines=lines, tokens=tokens))
        while len(self._readings) > 1:
            if (at - self._readings[1].at).total_seconds() < _WINDOW_S:
                return
            self._readings.popleft()

    @property
    def lines_per_s(self) -> float:
        """Lines a second."""
        return self._per_s(self._readings[-1].lines - self._readings[0].lines)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second."""
        return self._per_s(self._readings[-1].tokens - self._readings[0].tokens)

    def _per_s(self, more: int) -> float:
        seconds = (self._readings[-1].at - self._readings[0].at).total_seconds()
        return more / seconds if seconds > 0 else 0.0
