"""Finds custom_ids that occur twice, with eight bytes of memory for each line.

The hashes of all custom_ids are kept in plain arrays, divided by their lowest bits. Two equal ones
in a division are only a suspicion: `verify` reads the file again and compares the ids themselves.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

#: so many arrays: the set of one of them is small even for millions of lines
DIVISIONS = 256


class CustomIds:
    """The custom_ids seen so far, as hashes."""

    def __init__(self) -> None:
        self._divisions = [array("q") for _ in range(DIVISIONS)]
        self._appends = [division.append for division in self._divisions]

    def add(self, custom_ids: Iterable[str]) -> None:
        """Note some ids."""
        appends = self._appends
        for value in map(hash, custom_ids):
            appends[value & (DIVISIONS - 1)](value)

    def suspects(self) -> frozenset[int]:
        """Return the hashes that occur more than once."""
        found: set[int] = set()
        for division in self._divisions:
            seen: set[int] = set(division)
            if len(seen) < len(division):
                for value in division:
                    if value in seen:
                        seen.discard(value)
                    else:
                        found.add(value)
        return frozenset(found)


def verify(
    lines: Iterable[tuple[int, str]], suspects: frozenset[int]
) -> Iterator[tuple[int, int, str]]:
    """Yield (line, first line, custom_id) of each repetition among (line, custom_id) pairs."""
    first: dict[str, int] = {}
    for line, custom_id in lines:
        if hash(custom_id) in suspects and first.setdefault(custom_id, line) != line:
            yield line, first[custom_id], custom_id
