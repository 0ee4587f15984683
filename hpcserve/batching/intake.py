"""Validates the input file of a batch and enqueues its lines: all of them, or none.

Lines go into the ledger in chunks while the file is read, but nobody can lease them before the
batch is accepted; a validation that a crash cut off is begun anew. Every transaction is checked by
the caller's *guard*, so that a controller that lost its leadership cannot write beside the new one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from hpcserve.batching.input_file import unchanged
from hpcserve.batching.places import Places, publish
from hpcserve.batching.reading import Chunk, Reading
from hpcserve.config.tree import Batching
from hpcserve.domain.batch import Batch, BatchEvent, BatchState, InputFile, LineError
from hpcserve.errors import RequestError
from hpcserve.ports.clock import Clock
from hpcserve.ports.ledger import Ledger, Tx

#: raises FencedError when the caller must not write any more
Guard = Callable[[Tx], None]


class Intake:
    """The validator of input files."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        settings: Batching,
        places: Places,
        models: Callable[[], Collection[str]],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._settings = settings
        self._places = places
        self._models = models

    async def validate(self, batch_id: str, guard: Guard) -> None:
        """Bring a batch from VALIDATING to IN_PROGRESS or FAILED (CANCELLED when that came in)."""

        def begin(tx: Tx) -> tuple[Batch, InputFile | None] | None:
            guard(tx)
            batch = tx.batches.get(batch_id)
            if batch is None or batch.state is not BatchState.VALIDATING:
                return None
            tx.requests.discard(batch.seq)
            return batch, tx.files.get(batch.input_file_id)

        begun = await self._ledger.transact(begin)
        if begun is None:
            return
        batch, file = begun
        try:
            reading = await self._read(batch, file, guard)
        except RequestError as error:
            await self._refuse(batch_id, (_about_file(error),), guard)
            return
        if reading is None:
            await self.abandon(batch_id, guard)
        elif errors := tuple(reading.errors) or self._unknown_model(reading.model):
            await self._refuse(batch_id, errors, guard)
        else:
            await self._accept(batch_id, reading, guard)

    async def abandon(self, batch_id: str, guard: Guard) -> None:
        """Finish a batch that was cancelled before it was accepted; nothing was enqueued."""

        def work(tx: Tx) -> None:
            guard(tx)
            batch = tx.batches.get(batch_id)
            if batch is None or batch.state is not BatchState.CANCELLING or batch.model:
                return
            tx.requests.discard(batch.seq)
            reason = "cancelled while its file was validated; nothing was enqueued"
            tx.batches.save(*batch.on(BatchEvent.INVALID, at=self._clock.now(), reason=reason))

        await self._ledger.transact(work)
        self._places.custom_ids(batch_id).unlink(missing_ok=True)

    async def _read(self, batch: Batch, file: InputFile | None, guard: Guard) -> Reading | None:
        """Read the file into the ledger; None when the batch was cancelled meanwhile."""
        final = self._places.custom_ids(batch.id)
        temporary = final.with_suffix(f".{os.getpid()}.tmp")
        with ExitStack() as opened:
            opened.callback(temporary.unlink, missing_ok=True)
            custom_ids = opened.enter_context(temporary.open("wb"))
            reading = Reading(
                partial(unchanged, file),
                custom_ids,
                endpoint=batch.endpoint,
                settings=self._settings,
            )
            if not await self._enqueue(batch, reading, guard):
                return None
            await asyncio.to_thread(_make_durable, custom_ids, temporary, final)
        return reading

    async def _enqueue(self, batch: Batch, reading: Reading, guard: Guard) -> bool:
        """Store the lines, one chunk while the next is read; False when the batch has moved on."""
        chunks = reading.chunks()
        ahead = asyncio.create_task(asyncio.to_thread(next, chunks, None))
        try:
            while (chunk := await asyncio.shield(ahead)) is not None:
                ahead = asyncio.create_task(asyncio.to_thread(next, chunks, None))
                if not await self._store(batch, chunk, guard, is_valid=not reading.errors):
                    return False
        finally:
            await asyncio.wait([ahead])  # a thread cannot be cancelled, and it uses the files
            chunks.close()
        return True

    async def _store(self, batch: Batch, chunk: Chunk, guard: Guard, *, is_valid: bool) -> bool:
        def work(tx: Tx) -> bool:
            guard(tx)
            current = tx.batches.get(batch.id)
            if current is None or current.state is not BatchState.VALIDATING:
                return False
            if is_valid:
                tx.requests.add(batch.seq, chunk.requests)
            tx.batches.progress(batch.id, lines=chunk.lines, size_bytes=chunk.size_bytes)
            return True

        return await self._ledger.transact(work)

    def _unknown_model(self, model: str | None) -> tuple[LineError, ...]:
        known = self._models()
        if model in known:
            return ()
        names = ", ".join(sorted(known)) or "none is configured"
        message = f"The model {model!r} is not served here; known are: {names}."
        return (LineError(code="model_not_found", message=message, line=1, param="body.model"),)

    async def _refuse(self, batch_id: str, errors: tuple[LineError, ...], guard: Guard) -> None:
        def work(tx: Tx) -> None:
            guard(tx)
            batch = tx.batches.get(batch_id)
            if batch is None or batch.is_terminal:
                return
            tx.requests.discard(batch.seq)
            first = errors[0]
            where = f"line {first.line}: " if first.line else ""
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            reason = f"refused: {where}{first.message}{more}"
            tx.batches.save(
                *batch.on(BatchEvent.INVALID, at=self._clock.now(), reason=reason, errors=errors)
            )

        await self._ledger.transact(work)
        self._places.custom_ids(batch_id).unlink(missing_ok=True)

    async def _accept(self, batch_id: str, reading: Reading, guard: Guard) -> None:
        def work(tx: Tx) -> bool:
            guard(tx)
            batch = tx.batches.get(batch_id)
            if batch is None or batch.state is not BatchState.VALIDATING:
                return False
            accepted, transition = batch.on(
                BatchEvent.ACCEPTED,
                at=self._clock.now(),
                reason=f"{batch.counts.total} requests to {reading.model} are valid and wait",
                model=reading.model,
            )
            detail = {"input_sha256": reading.sha256}
            tx.batches.save(accepted, replace(transition, detail=detail))
            return True

        if not await self._ledger.transact(work):
            await self.abandon(batch_id, guard)


def _make_durable(file: BinaryIO, temporary: Path, final: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    publish(temporary, final)


def _about_file(error: RequestError) -> LineError:
    return LineError(code=error.code or "invalid_file", message=error.message, param=error.param)
