"""Theta, measured: by how much chat can grow within one time to ready.

Chiron's Theta is 1/r where arrivals may spike r-fold before new capacity serves. Here r is the 0.9
quantile, over the last day, of the highest load of the coming *lead* over the mean load of the last
minutes; by minute, since shorter spikes are absorbed by slots and a short queue. Until four leads
have been seen the configured first Theta holds. With a day behind it, the same hours of yesterday
say what is to come: the forecast is yesterday's peak over the lead, times today's level over
yesterday's.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime

_BIN_S = 60
#: two days of minutes
_BINS_MAX = 2 * 24 * 60
_DAY = 24 * 60
#: minutes that are "now"
_RECENT = 5
_QUANTILE = 0.9
#: Theta is measured anew each so many minutes
_EVERY = 10
#: growth that is ever believed
_GROWTH_MAX = 4.0
#: a level below this says nothing about growth
_LEVEL_MIN = 1.0


@dataclass(slots=True)
class Arrivals:
    """Chat of one model: the highest number in flight of each minute, oldest first."""

    peaks: deque[int] = field(default_factory=lambda: deque(maxlen=_BINS_MAX))
    _minute: int | None = None
    _growth: float | None = None
    _measured: int = 0

    def observe(self, in_flight: int, now: datetime) -> None:
        """Take a snapshot in; minutes without one repeat the last."""
        minute = int(now.timestamp()) // _BIN_S
        if self._minute is None or not self.peaks:
            self.peaks.append(in_flight)
        elif minute == self._minute:
            self.peaks[-1] = max(self.peaks[-1], in_flight)
        else:
            gap = min(minute - self._minute - 1, _BINS_MAX)
            self.peaks.extend([self.peaks[-1]] * gap)
            self.peaks.append(in_flight)
        self._minute = minute

    def level(self) -> float:
        """Return the mean of the last minutes."""
        recent = list(self.peaks)[-_RECENT:] if len(self.peaks) < _RECENT else self._last(_RECENT)
        return sum(recent) / max(1, len(recent))

    def growth(self, lead_s: float, first: float) -> float:
        """Return r = 1 / Theta for this time to ready."""
        lead = max(1, round(lead_s / _BIN_S))
        if len(self.peaks) < max(4 * lead, 60):
            return first
        if self._growth is None or (self._minute or 0) - self._measured >= _EVERY:
            self._growth = _quantile_growth(list(self.peaks)[-_DAY:], lead)
            self._measured = self._minute or 0
        return self._growth

    def forecast(self, lead_s: float) -> float | None:
        """Return the peak that yesterday's same hours promise, or None without a yesterday."""
        if len(self.peaks) < _DAY + _RECENT:
            return None
        lead = max(1, round(lead_s / _BIN_S))
        now = len(self.peaks) - _DAY
        then = [self.peaks[i] for i in range(max(0, now - _RECENT), now)]
        ahead = [self.peaks[i] for i in range(now, min(len(self.peaks), now + lead + 1))]
        was = sum(then) / max(1, len(then))
        change = min(1.5, max(0.5, self.level() / max(_LEVEL_MIN, was)))
        return max(ahead) * change

    def _last(self, count: int) -> list[int]:
        return [self.peaks[-1 - i] for i in range(count)]


def _quantile_growth(peaks: list[int], lead: int) -> float:
    """Return the quantile of (highest of the next *lead* minutes) / (mean of the last ones)."""
    ratios = []
    window: deque[int] = deque()
    highest = [0] * len(peaks)
    for i in range(len(peaks) - 1, -1, -1):
        highest[i] = peaks[window[0]] if window else 0
        while window and peaks[window[-1]] <= peaks[i]:
            window.pop()
        window.append(i)
        while window[0] >= i + lead:
            window.popleft()
    for i in range(_RECENT, len(peaks) - lead):
        level = sum(peaks[i - _RECENT + 1 : i + 1]) / _RECENT
        if level >= _LEVEL_MIN:
            ratios.append(highest[i] / level)
    if not ratios:
        return 1.0
    ratios.sort()
    growth = ratios[min(len(ratios) - 1, int(_QUANTILE * len(ratios)))]
    return min(_GROWTH_MAX, max(1.0, growth))
