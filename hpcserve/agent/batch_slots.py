"""Tells an engine that serves how many slots batch may hold, where it can be told.

What is above that waits inside the engine with its tokens kept, instead of being aborted and begun
anew: a dip of the cap costs nothing. The number goes through a file that the engine looks at in
each of its steps; it is replaced whole, so that no half number is read.
"""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger(__name__)


class BatchSlots:
    """The file, or nothing where the engine reads none."""

    def __init__(self, path: Path | None) -> None:
        """Take the file that the engine reads; nothing is written yet."""
        self._path = path
        self._written: int | None = None

    @property
    def is_obeyed(self) -> bool:
        """Whether the engine holds back what is above the last number."""
        return self._written is not None

    def limit(self, slots: int) -> None:
        """Let batch hold so many slots from the engine's next step on."""
        if self._path is None or slots == self._written:
            return
        new = self._path.with_suffix(".new")
        try:
            new.write_text(f"{slots}\n", encoding="ascii")
            new.replace(self._path)
        except OSError as error:
            # The engine goes on under the old number, so what is above the new one is shed.
            log.warning("%s cannot be written: %s", self._path, error.strerror)
            self._written = None
        else:
            self._written = slots
