"""Removes files that nobody needs any more; safe to run at any time, and again after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from datetime import datetime
from pathlib import Path

from hpcserve.batching.files import Files
from hpcserve.batching.places import Places
from hpcserve.config.tree import Batching
from hpcserve.domain.batch import Batch
from hpcserve.ports.clock import Clock
from hpcserve.ports.ledger import Ledger

#: files expired in one sweep; the next one comes soon
_EXPIRED_MAX = 1000


class Sweep:
    """Expired files, segments of finished batches, remains of broken uploads."""

    def __init__(
        self, *, ledger: Ledger, clock: Clock, settings: Batching, places: Places, files: Files
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._settings = settings
        self._places = places
        self._files = files

    async def sweep(self) -> None:
        """Remove what is due."""
        await self._files.expire(_EXPIRED_MAX)
        batches = await self._ledger.transact(lambda tx: tx.batches.open())
        await asyncio.to_thread(self._remove, batches, self._clock.now())

    def _remove(self, batches: Collection[Batch], now: datetime) -> None:
        """Remove old files.

        A segment holds results of batches that were open when it was last written, so it is needed
        as long as one of those is open. Its writer leaves it alone after `segment_idle_s`, and
        twice that time covers the difference of two machines' clocks.
        """
        margin_s = 2 * self._settings.segment_idle_s
        oldest = min((batch.created_at for batch in batches), default=now)
        needed_since = min(oldest, now).timestamp()
        _remove_older(self._places.segments.glob("*.jsonl"), needed_since - margin_s)
        leftovers = [
            *self._places.uploads.glob("*.tmp"),
            *self._places.outputs.glob("*.tmp"),
            *self._places.custom_ids("").parent.glob("*.tmp"),
        ]
        _remove_older(leftovers, now.timestamp() - margin_s)
        ids = {batch.id for batch in batches}
        orphans = (
            path
            for path in self._places.custom_ids("").parent.glob("*.jsonl")
            if path.stem not in ids
        )
        _remove_older(orphans, now.timestamp() - margin_s)


def _remove_older(paths: Iterable[Path], than_s: float) -> None:
    for path in paths:
        try:
            if path.stat().st_mtime < than_s:
                path.unlink()
        except FileNotFoundError:
            continue
