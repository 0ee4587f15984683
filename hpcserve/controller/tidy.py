"""Removes the folders of instances that ended long ago: logs, scratch, what was submitted.

Runs in the leading controller. A folder goes when its instance is not live in the ledger and
nothing in it has changed for `keep_logs_s`; what cannot be removed is passed by.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import final

from hpcserve.errors import BackendError
from hpcserve.ports.clock import Clock
from hpcserve.ports.ledger import Ledger

log = logging.getLogger(__name__)

#: between two looks, s
EVERY_S = 3600.0


@final
class Tidy:
    """The sweeper of instance folders."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        folders: tuple[Path, ...],
        keep_s: float,
        leads: Callable[[], bool],
    ) -> None:
        """Take the folders that hold one folder an instance, named by its id."""
        self._ledger = ledger
        self._clock = clock
        self._folders = folders
        self._keep_s = keep_s
        self._leads = leads

    async def run(self) -> None:
        """Look once an hour until cancelled."""
        while True:
            await self._clock.sleep(EVERY_S)
            if self._leads():
                try:
                    await self.sweep()
                except BackendError as error:
                    log.warning("instance folders stay: %s", error.message)

    async def sweep(self) -> None:
        """Remove what is due."""
        live = await self._ledger.transact(
            lambda tx: frozenset(instance.id for instance in tx.instances.live())
        )
        await asyncio.to_thread(self._remove, live, self._clock.now())

    def _remove(self, live: frozenset[str], now: datetime) -> None:
        for parent in self._folders:
            for folder in parent.glob("*"):
                if folder.name in live or now.timestamp() - _changed_s(folder) < self._keep_s:
                    continue
                shutil.rmtree(folder, ignore_errors=True)


def _changed_s(folder: Path) -> float:
    """Return when the newest thing in *folder* changed, seconds since the epoch."""
    return max((path.lstat().st_mtime for path in (folder, *folder.rglob("*"))), default=0.0)
