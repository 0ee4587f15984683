"""One pass over an input file: checks every line and tells where the requests lie.

This is the hot loop of intake. A line costs one typed decode, one comparison and one row; memory
stays flat but for the eight bytes that tell custom_ids apart. It runs in a thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import BinaryIO

import msgspec

from hpcserve.batching.duplicates import CustomIds, verify
from hpcserve.batching.envelope import MAX_CUSTOM_ID_CHARS, decode, fault
from hpcserve.batching.lines import Block, TooLong, blocks
from hpcserve.config.tree import Batching
from hpcserve.domain.batch import LineError, NewRequest

_encode_lines = msgspec.json.Encoder().encode_lines


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some valid lines, and how far the pass has come."""

    requests: list[NewRequest]
    lines: int
    size_bytes: int


class Reading:
    """The pass; `errors`, `model` and `sha256` hold when `chunks` is exhausted.

    The custom_ids go into *custom_ids*, one a line of the input (`null` for a blank one), so that
    each request can be answered by name even when its input has vanished.
    """

    def __init__(
        self,
        source: Callable[[], AbstractContextManager[BinaryIO]],
        custom_ids: BinaryIO,
        *,
        endpoint: str,
        settings: Batching,
    ) -> None:
        """Take how the file is opened: in the thread that reads it."""
        self.errors: list[LineError] = []
        self.model: str | None = None
        self._source = source
        self._custom_ids = custom_ids
        self._endpoint = endpoint
        self._settings = settings
        self._seen = CustomIds()
        self._digest = hashlib.sha256()
        self._requests = 0

    @property
    def sha256(self) -> str:
        """Digest of the whole file."""
        return self._digest.hexdigest()

    def chunks(self) -> Generator[Chunk]:
        """Yield the requests; stops early when the file is beyond hope."""
        with self._source() as file:
            yield from self._chunks(file)

    def _chunks(self, file: BinaryIO) -> Iterator[Chunk]:
        found: list[NewRequest] = []
        lines = size_bytes = 0
        for block in self._blocks(partial(self._hashed, file)):
            if isinstance(block, TooLong):
                limit = self._settings.max_line_bytes
                self._fail("line_too_long", f"This line is longer than {limit} bytes.", block.line)
                continue
            found += self._check(block)
            lines = block.first_line + len(block.lines) - 1
            size_bytes = block.offset + len(block.data)
            if self._is_beyond_hope():
                break
            while len(found) >= self._settings.validate_chunk:
                ready, found = (
                    found[: self._settings.validate_chunk],
                    found[self._settings.validate_chunk :],
                )
                yield Chunk(ready, lines, size_bytes)
        self._finish(file)
        yield Chunk(found, lines, size_bytes)

    def _hashed(self, file: BinaryIO, size_bytes: int) -> bytes:
        data = file.read(size_bytes)
        self._digest.update(data)
        return data

    def _blocks(self, read: Callable[[int], bytes]) -> Iterator[Block | TooLong]:
        return blocks(
            read,
            block_bytes=self._settings.read_block_bytes,
            max_line_bytes=self._settings.max_line_bytes,
        )

    def _check(self, block: Block) -> list[NewRequest]:
        """Return the block's requests; notes errors."""
        is_utf8 = _is_utf8(block.data)  # the decoder does not look into strings that it skips
        endpoint, model = self._endpoint, self.model
        requests: list[NewRequest] = []
        custom_ids: list[str | None] = []
        offset, number = block.offset, block.first_line
        for line in block.lines:
            length = len(line)
            custom_id = None
            try:
                seen = decode(line)
                if (
                    is_utf8
                    and seen.body.model == model
                    and seen.url == endpoint
                    and seen.method == "POST"
                    and not seen.body.stream
                    and 0 < len(seen.custom_id) <= MAX_CUSTOM_ID_CHARS
                ):
                    custom_id = seen.custom_id
                elif self._accept(line, number):
                    custom_id, model = seen.custom_id, self.model
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                if line.strip():
                    self._accept(line, number)
            custom_ids.append(custom_id)
            if custom_id is not None:
                requests.append(NewRequest(number, offset, length))
            offset += length + 1
            number += 1
        self._custom_ids.write(_encode_lines(custom_ids))
        self._seen.add(i for i in custom_ids if i is not None)
        self._requests += len(requests)
        return requests

    def _accept(self, line: bytes, number: int) -> bool:
        """Look at a line that the quick check did not pass; the first one sets the model."""
        problem = fault(line, number, endpoint=self._endpoint, model=self.model)
        if problem is not None:
            self.errors.append(problem)
            return False
        if self.model is None:
            self.model = decode(line).body.model
        return True

    def _is_beyond_hope(self) -> bool:
        if self._requests > self._settings.max_lines:
            limit = self._settings.max_lines
            self._fail("too_many_tasks", f"The file has more than {limit} requests.", None)
            return True
        del self.errors[self._settings.max_errors :]
        return len(self.errors) == self._settings.max_errors

    def _finish(self, file: BinaryIO) -> None:
        """Report what only the whole file shows."""
        room = self._settings.max_errors - len(self.errors)
        suspects = self._seen.suspects()
        if suspects and room > 0:
            repeated = verify(self._all_custom_ids(file), suspects)
            for line, first, custom_id in islice(repeated, room):
                text = f"The custom_id {custom_id[:80]!r} stands in line {first} already."
                self._fail("duplicate_custom_id", text, line, "custom_id")
        if not self._requests and not self.errors:
            self._fail("empty_file", "The file has no requests.", None)
        self.errors.sort(key=lambda error: error.line or 0)

    def _all_custom_ids(self, file: BinaryIO) -> Iterator[tuple[int, str]]:
        file.seek(0)
        for block in self._blocks(file.read):
            if isinstance(block, Block):
                for number, line in enumerate(block.lines, block.first_line):
                    try:
                        yield number, decode(line).custom_id
                    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                        continue

    def _fail(self, code: str, message: str, line: int | None, param: str | None = None) -> None:
        self.errors.append(LineError(code=code, message=message, line=line, param=param))


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
