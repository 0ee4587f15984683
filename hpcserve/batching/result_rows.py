"""Result rows in input order, and the bytes that they point to."""

from __future__ import annotations

import heapq
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import NamedTuple, Self

from hpcserve.domain.batch import RequestState
from hpcserve.errors import BackendError
from hpcserve.ports.ledger import Ledger

#: segments held open at a time, well below the usual limit of 1024 open files
_OPEN_MAX = 256


class Row(NamedTuple):
    """One finished line: where its result lies; segment -1: nobody wrote one."""

    line_no: int
    segment: int
    offset: int
    length: int
    state: RequestState


async def pages(
    ledger: Ledger,
    batch_seq: int,
    states: Sequence[RequestState],
    *,
    after_line: int = 0,
    page: int,
) -> AsyncIterator[list[Row]]:
    """Yield the rows in these states in input order, *page* at a time."""
    sources = [_of_state(ledger, batch_seq, state, after_line, page) for state in states]
    heads: list[tuple[Row, int]] = []
    for number, source in enumerate(sources):
        first = await anext(source, None)
        if first is not None:
            heads.append((first, number))
    heapq.heapify(heads)
    collected: list[Row] = []
    while heads:
        row, number = heads[0]
        collected.append(row)
        following = await anext(sources[number], None)
        if following is None:
            heapq.heappop(heads)
        else:
            heapq.heapreplace(heads, (following, number))
        if len(collected) == page:
            yield collected
            collected = []
    if collected:
        yield collected


async def _of_state(
    ledger: Ledger, batch_seq: int, state: RequestState, after_line: int, page: int
) -> AsyncIterator[Row]:
    last = after_line
    while True:
        after = last
        rows = await ledger.transact(
            lambda tx, after=after: tx.requests.results(  # type: ignore[misc]  # bound early
                batch_seq, state, after_line=after, limit=page
            )
        )
        for line_no, segment, offset, length in rows:
            yield Row(line_no, segment, offset, length, state)
            last = line_no
        if len(rows) < page:
            return


class SliceReader:
    """Reads slices of segments; for use in a thread."""

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._open: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def read(self, rows: Sequence[Row], paths: Mapping[int, str]) -> Iterator[bytes]:
        """Yield the results with their line ends; neighbours in a segment come as one block.

        Raises:
            BackendError: a segment is gone or too short.

        """
        for run in _runs(rows, self._block_bytes):
            first, last = run[0], run[-1]
            length = last.offset + last.length - first.offset
            data = os.pread(self._fd(first.segment, paths), length, first.offset)
            if len(data) < length:
                path = paths[first.segment]
                raise BackendError(
                    f"{path} is shorter than the ledger says; was the disk damaged?",
                    retryable=False,
                )
            yield data + b"\n"

    def _fd(self, segment: int, paths: Mapping[int, str]) -> int:
        if segment not in self._open:
            if len(self._open) >= _OPEN_MAX:
                self._close()
            try:
                self._open[segment] = os.open(paths[segment], os.O_RDONLY)
            except OSError as error:
                raise BackendError(
                    f"{paths[segment]} cannot be read ({error.strerror}); it holds results",
                    retryable=True,
                ) from error
        return self._open[segment]

    def _close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()


def _runs(rows: Sequence[Row], block_bytes: int) -> Iterator[list[Row]]:
    """Group rows that follow one another in a segment, up to *block_bytes*."""
    run: list[Row] = []
    for row in rows:
        if run:
            first, last = run[0], run[-1]
            follows = row.segment == last.segment and row.offset == last.offset + last.length + 1
            if not follows or row.offset + row.length - first.offset > block_bytes:
                yield run
                run = []
        run.append(row)
    if run:
        yield run
