"""An input file as blocks of whole lines, in constant memory.

Lines end with LF; a CR before it is JSON white space and does no harm. A byte order mark at the
start is skipped. Lines of white space alone are counted but are no requests. A line longer than
`max_line_bytes` is reported by its number and skipped without ever being in memory whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Block:
    """Some lines that follow one another."""

    #: number of the first, counted from 1
    first_line: int
    #: of the first byte in the file
    offset: int
    #: without their line ends
    lines: list[bytes]
    #: each line's bytes, with line ends between, as they are in the file
    data: bytes


@dataclass(frozen=True, slots=True)
class TooLong:
    """A line that exceeds the limit."""

    line: int


def blocks(
    read: Callable[[int], bytes], *, block_bytes: int, max_line_bytes: int
) -> Iterator[Block | TooLong]:
    """Yield the lines of what *read* returns, in order."""
    line, offset, rest = 1, 0, b""
    skipping = False
    while chunk := read(block_bytes):
        if offset == 0 and not rest and chunk.startswith(BOM):
            chunk, offset = chunk[len(BOM) :], len(BOM)
        end = chunk.rfind(b"\n")
        if skipping:
            # inside a line that is too long: drop everything up to its end
            begin = chunk.find(b"\n") + 1
            if not begin:
                offset += len(chunk)
                continue
            offset, line, skipping = offset + begin, line + 1, False
            chunk, end = chunk[begin:], end - begin
        if end < 0:
            rest += chunk
        else:
            data = rest + chunk[:end]
            lines = data.split(b"\n")
            yield from _checked(Block(line, offset, lines, data), max_line_bytes)
            offset, line = offset + len(data) + 1, line + len(lines)
            rest = chunk[end + 1 :]
        if len(rest) > max_line_bytes:
            yield TooLong(line)
            offset, rest, skipping = offset + len(rest), b"", True
    if rest:
        yield Block(line, offset, [rest], rest)


def _checked(block: Block, max_line_bytes: int) -> Iterator[Block | TooLong]:
    """Yield the block, after a TooLong for each of its lines that is."""
    if len(block.data) > max_line_bytes:
        for number, line in enumerate(block.lines, block.first_line):
            if len(line) > max_line_bytes:
                yield TooLong(number)
    yield block
