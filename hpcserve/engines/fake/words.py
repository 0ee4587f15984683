"""Tokens and text of the fake engine.

Four bytes of UTF-8 are one token, and its id is their value as a little-endian integer; a last
short token is filled with NUL. A generated token is a space and three letters. The next token is a
function of the CRC-32 over all tokens so far, which grows token by token: the state after a prompt
of P + E tokens equals the state after prompt P and E generated ones, so a continuation agrees.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import product
from zlib import crc32

BYTES_PER_TOKEN = 4
#: an answer of open length ends after so many tokens on average
MEAN_OPEN_TOKENS = 64
EMBEDDING_DIMENSIONS = 32

_CONSONANTS = "bcdfghklmnprstvz"
_VOWELS = "aeiou"
#: 1,024 words; their number is a power of two
WORDS: tuple[bytes, ...] = tuple(
    f" {first}{vowel}{last}".encode()
    for first, vowel, last in product(_CONSONANTS, _VOWELS, _CONSONANTS)
)[:1024]
_MASK = len(WORDS) - 1


def encode(text: str) -> bytes:
    """Return the tokens of a text as packed ids."""
    data = text.encode("utf-8", "surrogatepass")
    return data + b"\0" * (-len(data) % BYTES_PER_TOKEN)


def pack(ids: Sequence[int]) -> bytes:
    """Return packed ids; raise struct.error when one is no token id."""
    return struct.pack(f"<{len(ids)}I", *ids)


def unpack(packed: bytes) -> list[int]:
    """Return the ids of packed tokens."""
    return list(struct.unpack(f"<{len(packed) // BYTES_PER_TOKEN}I", packed))


def decode(packed: bytes) -> str:
    """Return the text of packed tokens."""
    return packed.rstrip(b"\0").decode("utf-8", "replace")


def start(prompt: bytes) -> int:
    """Return the state after a prompt of packed tokens."""
    return crc32(prompt)


def following(state: int) -> bytes:
    """Return the packed token that comes next, which is its text too."""
    return WORDS[(state ^ state >> 16) & _MASK]


def ends(state: int) -> bool:
    """Tell whether an answer of open length ends here."""
    return not (state >> 20) % MEAN_OPEN_TOKENS


def embedding(packed: bytes) -> list[float]:
    """Return a vector of numbers in -1..1 that depends on the tokens alone."""
    state = start(packed)
    vector = []
    for _ in range(EMBEDDING_DIMENSIONS):
        state = crc32(b"embedding", state)
        vector.append(state / 2**31 - 1)
    return vector
