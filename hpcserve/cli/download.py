"""Fetches results; a download that breaks is continued, at once or by the next command.

Results of a batch that has ended never change, so a file that ends with the bytes that stand there
in the results is a beginning of them. While a batch runs, lines may still come between those that
were fetched: then a file is written anew.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import BinaryIO

import httpx

from hpcserve.cli.client import check, unreachable
from hpcserve.cli.progress import TERMINAL
from hpcserve.errors import BackendError, RequestError

#: times that a broken download is continued, and the pause before, s
_TRIES, _PAUSE_S = 5, 1.0
#: bytes of a file's end that are compared before it is continued: many lines, or one huge one
_OVERLAP_BYTES = 64 * 1024
_PARTIAL, _BEYOND_END = 206, 416


class Download:
    """One file of results of one batch."""

    def __init__(self, client: httpx.Client, batch_id: str, *, kind: str) -> None:
        """Take the batch and the kind: `output` or `errors`."""
        self._client = client
        self._url = f"/hpcserve/v1/batches/{batch_id}/results?kind={kind}"
        #: bytes that the target holds
        self._held = 0
        self._has_ended = False

    def to_stdout(self) -> None:
        """Write everything to standard output."""
        self._fetch(sys.stdout.buffer)

    def to_file(self, path: Path) -> int:
        """Write everything to *path*; return how many bytes of it were there already."""
        try:
            with path.open("r+b" if path.exists() else "w+b") as target:
                self._held = kept = self._beginning(target)
                target.truncate(kept)
                target.seek(kept)
                self._fetch(target)
        except OSError as error:
            raise RequestError(f"{path} cannot be written: {error.strerror}.") from error
        return kept

    def _fetch(self, target: BinaryIO) -> None:
        tries = 0
        while True:
            tries += 1
            try:
                self._read(target)
            except httpx.TransportError as error:
                if self._has_ended and tries < _TRIES:
                    time.sleep(_PAUSE_S)
                    continue
                if not self._held:
                    raise unreachable(error) from error
                raise BackendError(
                    f"The download broke off after {self._held} bytes ({error}); repeat the "
                    "command.",
                    retryable=True,
                ) from error
            finally:
                target.flush()
            return

    def _read(self, target: BinaryIO) -> None:
        with self._client.stream("GET", self._url, headers=_range(self._held)) as response:
            if self._held and response.status_code == _BEYOND_END:
                return
            check(response)
            self._has_ended = response.headers["hpcserve-batch-status"] in TERMINAL
            if self._held and response.status_code != _PARTIAL:
                raise BackendError("The gateway sends no part of a file.", retryable=False)
            for chunk in response.iter_raw():
                target.write(chunk)
                self._held += len(chunk)

    def _beginning(self, target: BinaryIO) -> int:
        """Return how many bytes of a file are the beginning of the results, all or none."""
        size = target.seek(0, os.SEEK_END)
        start = max(0, size - _OVERLAP_BYTES)
        target.seek(start)
        tail = target.read()
        if not tail:
            return 0
        headers = {"range": f"bytes={start}-{size - 1}", "accept-encoding": "identity"}
        try:
            with self._client.stream("GET", self._url, headers=headers) as response:
                if response.status_code != _PARTIAL:
                    # it still runs, or the file is longer than the results
                    return 0
                return size if response.read() == tail else 0
        except httpx.TransportError as error:
            raise unreachable(error) from error


def _range(held: int) -> dict[str, str]:
    # compressed bytes could not be counted
    plain = {"accept-encoding": "identity"}
    return plain | {"range": f"bytes={held}-"} if held else plain
