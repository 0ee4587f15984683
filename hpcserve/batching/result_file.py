"""One file of results on its way to disk, and error lines for requests that nobody answered."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Self

import msgspec

from hpcserve.batching.places import publish
from hpcserve.errors import BackendError


class ResultFile:
    """Written aside, then published whole."""

    def __init__(self, final: Path, *, tag: str) -> None:
        self.final = final
        self.lines = 0
        self.size_bytes = 0
        self._temporary = final.with_name(f"{final.name}.{tag}.tmp")
        self._digest = hashlib.sha256()
        self._file: BinaryIO = self._temporary.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        """Digest of what was written."""
        return self._digest.hexdigest()

    def write(self, blocks: Iterable[bytes], *, lines: int) -> None:
        """Append whole lines."""
        for block in blocks:
            self._file.write(block)
            self._digest.update(block)
            self.size_bytes += len(block)
        self.lines += lines

    def publish(self) -> os.stat_result:
        """Make it durable under its final name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        publish(self._temporary, self.final)
        return self.final.stat()


class CustomIds:
    """The custom_ids of a batch by line number; must be asked in ascending order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._line = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def at(self, line_no: int) -> bytes:
        """Return the custom_id of a line, as JSON."""
        try:
            if self._file is None:
                self._file = self._path.open("rb")
            text = b""
            while self._line < line_no:
                text = self._file.readline()
                self._line += 1
        except OSError as error:
            raise BackendError(
                f"{self._path} cannot be read: {error.strerror}", retryable=True
            ) from error
        return text.rstrip(b"\n") or b"null"


def error_line(batch_id: str, line_no: int, custom_id: bytes, code: str, message: str) -> bytes:
    """Return the line of the error file for a request without an answer; *custom_id* is JSON."""
    error = msgspec.json.encode({"code": code, "message": message})
    request_id = f"batch_req_{batch_id.removeprefix('batch-')}-{line_no}".encode()
    return b'{"id":"%s","custom_id":%s,"response":null,"error":%s}\n' % (
        request_id,
        custom_id,
        error,
    )
