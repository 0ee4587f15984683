"""Time and identifiers, as things that are handed in."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """The only source of time."""

    def now(self) -> datetime:
        """Return the wall-clock time, UTC-aware."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds that never go back, for measuring durations."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class Ids(Protocol):
    """The only source of fresh names and secrets."""

    def new(self, prefix: str) -> str:
        """Return a fresh id such as `inst-5f3a...` that sorts by the time of its making."""
        ...

    def secret(self) -> str:
        """Return 256 random bits as URL-safe text."""
        ...
