"""What is finished of a batch so far, in input order, while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from hpcserve.batching.result_rows import SliceReader, pages
from hpcserve.config.tree import Batching
from hpcserve.domain.batch import Batch, RequestState
from hpcserve.ports.ledger import Ledger


class Results:
    """Streams results out of the segments of a batch that is not terminal."""

    def __init__(self, *, ledger: Ledger, settings: Batching) -> None:
        self._ledger = ledger
        self._settings = settings

    async def stream(
        self, batch: Batch, state: RequestState, *, after_line: int
    ) -> AsyncIterator[bytes]:
        """Yield results behind an input line: answers (COMPLETED) or rejected lines (FAILED)."""
        with SliceReader(self._settings.read_block_bytes) as slices:
            async for rows in pages(
                self._ledger,
                batch.seq,
                (state,),
                after_line=after_line,
                page=self._settings.result_page,
            ):
                written = [row for row in rows if row.segment >= 0]
                segments = tuple({row.segment for row in written})
                paths = await self._ledger.transact(
                    lambda tx, segments=segments: tx.segments.paths(segments)  # type: ignore[misc]  # bound early
                )
                blocks = slices.read(written, paths)
                while (block := await asyncio.to_thread(next, blocks, None)) is not None:
                    yield block
