"""Undo for a transaction in memory: each write notes what stood there before.

Everything that is stored is immutable, so putting the old value back is a complete undo.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, MutableMapping
from datetime import datetime
from typing import TypeVar

from hpcserve.errors import ConflictError

K = TypeVar("K")
V = TypeVar("V")
End = TypeVar("End", bound=tuple[datetime, str])


class Journal:
    """The writes of one transaction, as the calls that undo them."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._undo: list[Callable[[], object]] = []

    def put(self, shelf: MutableMapping[K, V], key: K, value: V) -> None:
        """Write one value."""
        if key in shelf:
            old = shelf[key]
            self._undo.append(lambda: shelf.__setitem__(key, old))
        else:
            self._undo.append(lambda: shelf.pop(key))
        shelf[key] = value

    def insert(self, shelf: MutableMapping[K, V], key: K, value: V) -> None:
        """Write one value where there is none; raise ConflictError where there is."""
        if key in shelf:
            raise ConflictError(f"the ledger has such a row already: {key}")
        self.put(shelf, key, value)

    def remove(self, shelf: MutableMapping[K, V], key: K) -> None:
        """Remove one value if it is there."""
        if key in shelf:
            old = shelf.pop(key)
            self._undo.append(lambda: shelf.__setitem__(key, old))

    def append(self, shelf: list[V], value: V) -> None:
        """Add one value at the end."""
        shelf.append(value)
        self._undo.append(shelf.pop)

    def insort(self, shelf: list[End], value: End) -> None:
        """Add one value at its place in a sorted list."""
        insort(shelf, value)
        self._undo.append(lambda: shelf.remove(value))

    def drop(self, shelf: list[End], value: End) -> None:
        """Take one value out of a sorted list."""
        shelf.remove(value)
        self._undo.append(lambda: insort(shelf, value))

    def roll_back(self) -> None:
        """Undo all writes, last first."""
        while self._undo:
            self._undo.pop()()
