"""The real clock, the real source of identifiers, and where a process logs."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
import time
from datetime import UTC, datetime


class SystemClock:
    """This machine's time."""

    def now(self) -> datetime:
        """Return the wall-clock time."""
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        """Return seconds that never go back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait; not at all when there is nothing left to wait for."""
        await asyncio.sleep(max(0.0, seconds))


class SystemIds:
    """Names that sort by the time of their making, and secrets of the operating system."""

    def new(self, prefix: str) -> str:
        """Return a fresh id: milliseconds in hexadecimal, then 48 random bits."""
        return f"{prefix}-{time.time_ns() // 1_000_000:011x}{secrets.token_hex(6)}"

    def secret(self) -> str:
        """Return 256 random bits as URL-safe text."""
        return secrets.token_urlsafe(32)


def log_to_stderr() -> None:
    """Log as a process of the site does."""
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
