"""A new batch of the lines of an ended one that have no answer: failed, expired, cancelled."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from hpcserve.batching.batches import METADATA_PAIRS, Batches, NewBatch
from hpcserve.batching.files import Files
from hpcserve.batching.input_file import unchanged
from hpcserve.batching.result_rows import pages
from hpcserve.config.tree import Batching
from hpcserve.domain.batch import Batch, InputFile, RequestState
from hpcserve.errors import RequestError
from hpcserve.ports.ledger import Ledger

#: the metadata that names the batch before
RETRY_OF = "hpcserve.retry_of"
_UNANSWERED = (RequestState.FAILED, RequestState.EXPIRED, RequestState.CANCELLED)


class Again:
    """Submits what is missing once more, as the same user and to the same endpoint."""

    def __init__(
        self, *, ledger: Ledger, settings: Batching, files: Files, batches: Batches
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._files = files
        self._batches = batches

    async def retry(self, batch: Batch, completion_window: str) -> Batch:
        """Write the unanswered lines of *batch* into a file of ours, and make a batch of it.

        Raises:
            RequestError: it has not ended, has no such lines, or its input has been changed.

        """
        counts = batch.counts
        missing = counts.failed + counts.expired + counts.cancelled
        if not batch.is_terminal or not missing or not batch.model:
            why = f"all its {counts.completed} requests were answered"
            if not batch.is_terminal:
                why = f"it is {batch.state}; wait for its end, or cancel it"
            elif not batch.model:
                why = "its file was refused; submit a mended one"
            raise RequestError(
                f"There is nothing to retry of {batch.id}: {why}.",
                code="invalid_batch_status",
                param="batch_id",
            )
        source = await self._ledger.transact(lambda tx: tx.files.get(batch.input_file_id))
        written = await self._write(batch, source)
        metadata = {**batch.metadata, RETRY_OF: batch.id}
        if len(metadata) > METADATA_PAIRS:
            metadata = dict(batch.metadata)
        asked = NewBatch(
            input_file_id=written.id,
            endpoint=batch.endpoint,
            completion_window=completion_window,
            metadata=metadata,
            idempotency_key=None,
            is_retry=False,
        )
        return await self._batches.create(batch.owner, asked)

    async def _write(self, batch: Batch, source: InputFile | None) -> InputFile:
        upload = await self._files.receive(batch.owner)
        try:
            with unchanged(source) as opened:
                async for rows in pages(
                    self._ledger, batch.seq, _UNANSWERED, page=self._settings.result_page
                ):
                    numbers = [row.line_no for row in rows]
                    places = await self._ledger.transact(
                        lambda tx, numbers=numbers: tx.requests.inputs(batch.seq, numbers)  # type: ignore[misc]  # bound early
                    )
                    await upload.write(await asyncio.to_thread(_read, opened.fileno(), places))
            name = f"retry-of-{batch.id}.jsonl"
            return await upload.finish(filename=name, expires_after_s=None)
        finally:
            await upload.discard()


def _read(fd: int, places: Sequence[tuple[int, int, int]]) -> bytes:
    return b"".join(os.pread(fd, length, offset) + b"\n" for _, offset, length in sorted(places))
