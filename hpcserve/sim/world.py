"""Time and names of a simulated world; both follow from its seed."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

#: second 0 of every simulation: a Monday, midnight
START = datetime(2026, 1, 5, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """Return the wall-clock time of a simulated second."""
    return START + timedelta(seconds=seconds)


class LoopClock:
    """The port Clock on the running loop's virtual time."""

    def now(self) -> datetime:
        """Return the wall-clock time."""
        return at(self.monotonic_s())

    def monotonic_s(self) -> float:
        """Return virtual seconds."""
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        """Wait in virtual time."""
        await asyncio.sleep(seconds)


class CountingIds:
    """The port Ids; names are numbers, so that they sort by the time of their making."""

    def __init__(self) -> None:
        """Begin at 1."""
        self._made = Counter[str]()

    def new(self, prefix: str) -> str:
        """Return the next name."""
        self._made[prefix] += 1
        return f"{prefix}-{self._made[prefix]:06d}"

    def secret(self) -> str:
        """Return something that is no secret."""
        return self.new("secret")
