from __future__ import annotations

import io

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hpcserve.batching.lines import BOM, Block, TooLong, blocks


def read(data: bytes, *, block: int = 4, longest: int = 100) -> list[tuple[int, int, bytes]]:
    """Return (number, offset, line) of every line."""
    found = []
    for piece in blocks(io.BytesIO(data).read, block_bytes=block, max_line_bytes=longest):
        assert isinstance(piece, Block)
        offset = piece.offset
        for number, line in enumerate(piece.lines, piece.first_line):
            found.append((number, offset, line))
            offset += len(line) + 1
    return found


@given(st.lists(st.binary(max_size=9).filter(lambda b: b"\n" not in b)), st.integers(1, 20))
def test_lines_come_out_as_they_went_in_whatever_the_block_size(
    lines: list[bytes], block: int
) -> None:
    data = b"".join(line + b"\n" for line in lines)
    assume(not data.startswith(BOM))
    found = read(data, block=block)
    assert [line for _, _, line in found] == lines
    assert [number for number, _, _ in found] == list(range(1, len(lines) + 1))
    assert all(data[offset : offset + len(line)] == line for _, offset, line in found)


def test_a_last_line_without_its_end_counts() -> None:
    assert [line for _, _, line in read(b"one\ntwo")] == [b"one", b"two"]


@pytest.mark.parametrize("block", [3, 4, 64])
def test_a_byte_order_mark_is_no_part_of_the_first_line(block: int) -> None:
    assert read(b"\xef\xbb\xbfone\ntwo\n", block=block)[0] == (1, 3, b"one")


@pytest.mark.parametrize("block", [2, 5, 8, 64])
def test_a_line_that_is_too_long_is_named_and_skipped(block: int) -> None:
    data = b"one\n" + b"x" * 30 + b"\nthree\n"
    pieces = list(blocks(io.BytesIO(data).read, block_bytes=block, max_line_bytes=10))
    assert [p.line for p in pieces if isinstance(p, TooLong)] == [2]
    offset = data.index(b"three")
    last = [p for p in pieces if isinstance(p, Block)][-1]
    assert last.lines[-1] == b"three"
    assert last.first_line + len(last.lines) - 1 == 3
    assert last.offset + len(last.data) == offset + len(b"three")
