"""A file on its way in: streamed to disk, then entered into the ledger."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import BinaryIO

from hpcserve.batching.input_file import require_size
from hpcserve.batching.places import publish
from hpcserve.domain.batch import InputFile
from hpcserve.errors import BackendError

#: enters a complete file: its path, the name that its owner gave it, its time to live in seconds
Enter = Callable[[Path, str, int | None], Awaitable[InputFile]]


class Upload:
    """A file on its way in: streamed to disk, complete or not there at all."""

    def __init__(self, path: Path, opened: BinaryIO, max_bytes: int, enter: Enter) -> None:
        """Take the final path, the open temporary beside it, and what follows its completion."""
        self._path = path
        self._opened = opened
        self._max_bytes = max_bytes
        self._enter = enter
        self._size_bytes = 0

    async def write(self, data: bytes) -> None:
        """Append; raises RequestError beyond the size limit, BackendError when the disk is full."""
        self._size_bytes += len(data)
        require_size(self._size_bytes, self._max_bytes)
        try:
            await asyncio.to_thread(self._opened.write, data)
        except OSError as error:
            raise _disk(error) from error

    async def finish(self, *, filename: str, expires_after_s: int | None) -> InputFile:
        """Make it durable and enter it into the ledger."""
        try:
            await asyncio.to_thread(self._publish)
        except OSError as error:
            raise _disk(error) from error
        return await self._enter(self._path, filename, expires_after_s)

    async def discard(self) -> None:
        """Forget an upload that was not finished; does nothing to a finished one."""
        await asyncio.to_thread(self._drop)

    def _publish(self) -> None:
        self._opened.flush()
        os.fsync(self._opened.fileno())
        self._opened.close()
        publish(self._path.with_suffix(".tmp"), self._path)

    def _drop(self) -> None:
        try:
            self._opened.close()
        finally:
            self._path.with_suffix(".tmp").unlink(missing_ok=True)


async def chunks_of(stream: AsyncIterator[bytes], size_bytes: int) -> AsyncIterator[bytes]:
    """Join small pieces to blocks of about *size_bytes*, so that a thread is worth its switch."""
    pending: list[bytes] = []
    held = 0
    async for piece in stream:
        pending.append(piece)
        held += len(piece)
        if held >= size_bytes:
            yield b"".join(pending)
            pending, held = [], 0
    if pending:
        yield b"".join(pending)


def _disk(error: OSError) -> BackendError:
    return BackendError(
        f"The upload cannot be stored ({error.strerror}); try again later.", retryable=True
    )
