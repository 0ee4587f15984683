"""An input file that must be what it was when its owner handed it in."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hpcserve.domain.batch import InputFile
from hpcserve.errors import RequestError


@contextmanager
def unchanged(file: InputFile | None) -> Iterator[BinaryIO]:
    """Open an input file that must be, and stay, what was handed in; None is one that was deleted.

    Raises:
        RequestError: it has vanished, cannot be read, or is not what it was any more.

    """
    if file is None:
        raise RequestError("The input file was deleted.", code="input_file_missing")
    try:
        opened = Path(file.path).open("rb")  # noqa: SIM115  # closed below; only opening is caught
    except OSError as error:
        raise RequestError(
            f"The input file {file.filename} cannot be read any more ({error.strerror}); "
            "put it back as it was, or submit a new batch.",
            code="input_file_missing",
            param="input_file_id",
        ) from error
    with opened:
        _require_unchanged(file, opened)
        yield opened
        _require_unchanged(file, opened)


def _require_unchanged(file: InputFile, opened: BinaryIO) -> None:
    now = os.fstat(opened.fileno())
    if (now.st_size, now.st_mtime_ns) != (file.size_bytes, file.mtime_ns):
        raise RequestError(
            f"The input file {file.filename} was changed after it was submitted "
            f"({file.size_bytes} bytes then, {now.st_size} now); submit the new content as a "
            "new batch.",
            code="input_file_changed",
            param="input_file_id",
        )


def look_at(path: Path, *, max_bytes: int) -> os.stat_result:
    """Return size and modification time of a file that its owner registers by path.

    Raises:
        RequestError: no absolute path of a readable, regular file within the size limit.

    """
    if not path.is_absolute():
        raise RequestError(f"{path}: give the absolute path.", code="invalid_value", param="path")
    try:
        with path.open("rb") as opened:
            found = os.fstat(opened.fileno())
    except OSError as error:
        raise RequestError(
            f"{path}: cannot be read: {error.strerror}.", code="invalid_value", param="path"
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise RequestError(f"{path}: is no regular file.", code="invalid_value", param="path")
    require_size(found.st_size, max_bytes)
    return found


def require_size(size_bytes: int, max_bytes: int) -> None:
    """Raise RequestError when a file is too large."""
    if size_bytes > max_bytes:
        raise RequestError(
            f"File is too large: at most {max_bytes} bytes are taken.",
            http_status=413,
            code="file_too_large",
            param="file",
        )
