"""The ledger in memory agrees with the model, whatever happens to a batch."""

from __future__ import annotations

from hypothesis import settings

from hpcserve.ledger import MEMORY, open_ledger
from hpcserve.ports.ledger import Ledger
from tests.property.ledger.lines import Lines


class MemoryLines(Lines):
    @staticmethod
    def open() -> Ledger:
        return open_ledger(MEMORY)


TestMemoryLines = MemoryLines.TestCase
TestMemoryLines.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
