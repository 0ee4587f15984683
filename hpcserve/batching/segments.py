"""Result segments: files to which results are appended in the order of their arrival.

One process has one open segment. `append` returns when the bytes are on disk; only then may the
ledger refer to them. What was appended but never referred to (its lease was lost, the process died)
is garbage that nobody reads. A segment that was idle for long is not written to again, so that the
worker may remove old ones without asking who has them open.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hpcserve.batching.places import Places
from hpcserve.config.tree import Batching
from hpcserve.errors import BackendError
from hpcserve.ports.clock import Clock, Ids
from hpcserve.ports.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Slice:
    """Where one result lies."""

    segment: int
    offset: int
    length: int


@dataclass(slots=True)
class _Open:
    number: int
    file: BinaryIO
    size_bytes: int
    #: Clock.monotonic_s of the last append
    used_s: float


class Segments:
    """The segment writer of this process; one `append` at a time."""

    def __init__(
        self, *, ledger: Ledger, clock: Clock, ids: Ids, settings: Batching, places: Places
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._settings = settings
        self._places = places
        self._open: _Open | None = None

    async def append(self, lines: Sequence[bytes]) -> list[Slice]:
        """Write lines durably; each gets a line end that its slice does not include.

        Raises:
            BackendError: the disk is full or failing; nothing of it will be referred to.

        """
        segment = await self._writable()
        try:
            await asyncio.to_thread(_write, segment, lines)
        except OSError as error:
            raise self._failed(error) from error
        try:
            await asyncio.to_thread(os.fsync, segment.file.fileno())
        except OSError as error:
            # nobody knows now what is on disk: leave this file alone
            self.close()
            raise self._failed(error) from error
        slices = []
        for line in lines:
            slices.append(Slice(segment.number, segment.size_bytes, len(line)))
            segment.size_bytes += len(line) + 1
        segment.used_s = self._clock.monotonic_s()
        return slices

    def close(self) -> None:
        """Close the open segment; the next append begins a new one."""
        if self._open is not None:
            self._open.file.close()
            self._open = None

    def _failed(self, error: OSError) -> BackendError:
        return BackendError(
            f"results cannot be written to {self._places.segments} ({error.strerror}); "
            "they stay with their agents, which try again",
            retryable=True,
        )

    async def _writable(self) -> _Open:
        now_s = self._clock.monotonic_s()
        if self._open is not None:
            is_full = self._open.size_bytes >= self._settings.segment_bytes
            is_stale = now_s - self._open.used_s > self._settings.segment_idle_s
            if not (is_full or is_stale):
                return self._open
            self.close()
        path = self._places.segments / f"{self._ids.new('seg')}.jsonl"
        try:
            file = await asyncio.to_thread(_create, path)
        except OSError as error:
            raise BackendError(
                f"{path} cannot be created ({error.strerror})", retryable=True
            ) from error
        number = await self._ledger.transact(lambda tx: tx.segments.add(str(path)))
        self._open = _Open(number, file, 0, now_s)
        return self._open


def _create(path: Path) -> BinaryIO:
    file = path.open("xb")
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return file


def _write(segment: _Open, lines: Sequence[bytes]) -> None:
    """Write at the segment's end; what a full disk cuts off is written over the next time."""
    left, offset = memoryview(b"\n".join((*lines, b""))), segment.size_bytes
    while left:
        written = os.pwrite(segment.file.fileno(), left, offset)
        left, offset = left[written:], offset + written
