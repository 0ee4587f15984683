"""The Files API: uploads, files registered by path, what we wrote; each seen by its owner only."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from hpcserve.batching.input_file import look_at
from hpcserve.batching.places import Places
from hpcserve.batching.uploads import Upload
from hpcserve.config.tree import Batching
from hpcserve.domain.batch import InputFile
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.errors import RequestError
from hpcserve.ports.clock import Clock, Ids
from hpcserve.ports.ledger import Ledger, Tx

PURPOSE_INPUT = "batch"
PURPOSE_OUTPUT = "batch_output"
#: OpenAI's longest page
LIST_MAX = 10_000
#: OpenAI's bounds of `expires_after[seconds]`
EXPIRES_AFTER_S = (3600, 30 * 24 * 3600)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list of files."""

    data: tuple[InputFile, ...]
    has_more: bool


class Files:
    """The service behind `/v1/files`."""

    def __init__(
        self, *, ledger: Ledger, clock: Clock, ids: Ids, settings: Batching, places: Places
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._settings = settings
        self._places = places

    async def receive(self, owner: str) -> Upload:
        """Begin an upload; the caller writes to it, then finishes or discards it."""
        file_id = self._ids.new("file")
        path = self._places.uploads / f"{file_id}.jsonl"
        opened = await asyncio.to_thread(path.with_suffix(".tmp").open, "xb")
        return Upload(
            path, opened, self._settings.max_file_bytes, partial(self._enter, owner, file_id)
        )

    async def register(self, owner: str, path: str, *, expires_after_s: int | None) -> InputFile:
        """Take a file where it lies, without a copy; it must stay as it is."""
        found = await asyncio.to_thread(
            look_at, Path(path), max_bytes=self._settings.max_file_bytes
        )
        return await self.add(
            self._new(
                owner,
                file_id=self._ids.new("file"),
                filename=Path(path).name,
                found=found,
                path=Path(path),
                is_ours=False,
                expires_after_s=expires_after_s,
            )
        )

    async def add(self, file: InputFile) -> InputFile:
        """Enter a complete file into the ledger."""
        await self._ledger.transact(lambda tx: tx.files.add(file))
        return file

    async def get(self, owner: str, file_id: str) -> InputFile:
        """Return one file.

        Raises:
            RequestError: there is none, or it is somebody else's.

        """
        return await self._ledger.transact(lambda tx: owned(tx, owner, file_id))

    async def list(
        self, owner: str, *, purpose: str | None, limit: int, after: str | None, ascending: bool
    ) -> Page:
        """Return one page of an owner's files, newest first unless *ascending*."""
        files = await self._ledger.transact(lambda tx: tx.files.list(owner, purpose=purpose))
        ordered = files[::-1] if ascending else files
        if after is not None:
            ids = [file.id for file in ordered]
            if after not in ids:
                raise _unknown(after, param="after")
            ordered = ordered[ids.index(after) + 1 :]
        return Page(ordered[:limit], has_more=len(ordered) > limit)

    async def delete(self, owner: str, file_id: str) -> None:
        """Delete a file; a registered one stays where it is, only the entry goes.

        Raises:
            RequestError: a batch still needs it.

        """

        def work(tx: Tx) -> InputFile:
            file = owned(tx, owner, file_id)
            for batch in tx.batches.open():
                if batch.input_file_id == file_id:
                    raise RequestError(
                        f"The file is in use by {batch.id}: cancel that batch first, or wait.",
                        code="file_in_use",
                        param="file_id",
                    )
            self._forget(tx, file, f"deleted by {owner}")
            return file

        await self._remove(await self._ledger.transact(work))

    async def expire(self, limit: int) -> int:
        """Delete files past their time that no open batch needs; return how many."""

        def work(tx: Tx) -> tuple[InputFile, ...]:
            needed = {batch.input_file_id for batch in tx.batches.open()}
            gone = tx.files.expired(self._clock.now(), limit + len(needed))
            gone = tuple(file for file in gone if file.id not in needed)
            for file in gone:
                self._forget(tx, file, "expired")
            return gone

        gone = await self._ledger.transact(work)
        for file in gone:
            await self._remove(file)
        return len(gone)

    async def _enter(
        self, owner: str, file_id: str, path: Path, filename: str, expires_after_s: int | None
    ) -> InputFile:
        """Enter an upload that is complete on disk."""
        found = await asyncio.to_thread(path.stat)
        return await self.add(
            self._new(
                owner,
                file_id=file_id,
                filename=filename,
                found=found,
                path=path,
                is_ours=True,
                expires_after_s=expires_after_s,
            )
        )

    def _new(
        self,
        owner: str,
        *,
        file_id: str,
        filename: str,
        found: os.stat_result,
        path: Path,
        is_ours: bool,
        expires_after_s: int | None,
    ) -> InputFile:
        now = self._clock.now()
        return InputFile(
            id=file_id,
            owner=owner,
            filename=filename,
            purpose=PURPOSE_INPUT,
            size_bytes=found.st_size,
            created_at=now,
            expires_at=now + timedelta(seconds=expires_after_s or self._settings.keep_files_s),
            path=str(path),
            is_ours=is_ours,
            mtime_ns=found.st_mtime_ns,
        )

    def _forget(self, tx: Tx, file: InputFile, reason: str) -> None:
        tx.files.delete(file.id)
        tx.events.append(
            Transition(
                subject=Subject.FILE,
                subject_id=file.id,
                at=self._clock.now(),
                event="deleted",
                from_state=None,
                to_state=None,
                reason=reason,
            )
        )

    async def _remove(self, file: InputFile) -> None:
        if file.is_ours:
            await asyncio.to_thread(Path(file.path).unlink, missing_ok=True)


def owned(tx: Tx, owner: str, file_id: str, *, param: str = "file_id") -> InputFile:
    """Return a file that is this owner's; what is somebody else's does not exist for others."""
    file = tx.files.get(file_id)
    if file is None or file.owner != owner:
        raise _unknown(file_id, param=param)
    return file


async def content(file: InputFile) -> Path:
    """Return where a file's bytes lie.

    Raises:
        RequestError: they are gone.

    """
    path = Path(file.path)
    if not await asyncio.to_thread(path.is_file):
        raise RequestError(
            f"The content of {file.id} is gone: {file.filename} was removed.",
            http_status=404,
            code="file_content_missing",
        )
    return path


def _unknown(file_id: str, *, param: str) -> RequestError:
    return RequestError(
        f"No such File object: {file_id[:80]}.", http_status=404, code="file_not_found", param=param
    )
