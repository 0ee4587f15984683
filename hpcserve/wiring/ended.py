"""The site's own command at the end of a batch: a mail, a chat message, a webhook by curl."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

from hpcserve.config import Batching
from hpcserve.domain.batch import Batch

log = logging.getLogger(__name__)


class EndCommand:
    """Runs `[batching] on_end` once for each batch that has ended; its failure is only logged."""

    def __init__(self, settings: Batching) -> None:
        """Take the command and its time limit."""
        self._settings = settings

    async def __call__(self, batch: Batch) -> None:
        """Run the command in a process group of its own; kill that when it takes too long."""
        if not self._settings.on_end:
            return
        try:
            process = await asyncio.create_subprocess_exec(
                *self._settings.on_end,
                stdin=asyncio.subprocess.DEVNULL,
                env=os.environ | _facts(batch),
                start_new_session=True,
            )
        except OSError as error:
            log.warning("[batching] on_end cannot be started: %s", error)
            return
        try:
            async with asyncio.timeout(self._settings.on_end_timeout_s):
                code = await process.wait()
        except TimeoutError:
            log.warning("[batching] on_end took too long for %s and is killed", batch.id)
            os.killpg(process.pid, signal.SIGKILL)
            code = await process.wait()
        if code:
            log.warning("[batching] on_end ended with %d for %s", code, batch.id)


def _facts(batch: Batch) -> dict[str, str]:
    counts = batch.counts
    facts = {
        "ID": batch.id,
        "STATUS": batch.state.value,
        "OWNER": batch.owner,
        "MODEL": batch.model,
        "COMPLETED": str(counts.completed),
        "FAILED": str(counts.failed + counts.cancelled + counts.expired),
        "TOTAL": str(counts.total),
    }
    return {f"HPCSERVE_BATCH_{name}": value for name, value in facts.items()}
