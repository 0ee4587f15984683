"""Transactions in memory: one at a time, undone when they raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from typing_extensions import override

from hpcserve.errors import ConflictError
from hpcserve.ledger.limits import CONFLICT_PAUSES_S
from hpcserve.ledger.memory.journal import Journal
from hpcserve.ledger.memory.requests import MemoryRequests
from hpcserve.ledger.memory.shelves import Shelves
from hpcserve.ledger.memory.stores import (
    MemoryBatches,
    MemoryDemand,
    MemoryEvents,
    MemoryFiles,
    MemoryInstances,
    MemoryKeys,
    MemoryLeader,
    MemoryNotes,
    MemorySegments,
)
from hpcserve.ports.ledger import Ledger, Tx

T = TypeVar("T")


class MemoryTx:
    """The stores of one transaction."""

    def __init__(self, shelves: Shelves, journal: Journal) -> None:
        """Take what is stored, and the journal of this transaction."""
        self.events = MemoryEvents(shelves, journal)
        self.instances = MemoryInstances(shelves, journal, self.events)
        self.files = MemoryFiles(shelves, journal)
        self.batches = MemoryBatches(shelves, journal, self.events)
        self.requests = MemoryRequests(shelves, journal)
        self.segments = MemorySegments(shelves, journal)
        self.keys = MemoryKeys(shelves, journal)
        self.demand = MemoryDemand(shelves, journal)
        self.leader = MemoryLeader(shelves, journal)
        self.notes = MemoryNotes(shelves, journal)


class MemoryLedger(Ledger):
    """A ledger that dies with its process."""

    def __init__(self) -> None:
        self._shelves = Shelves()

    @override
    async def transact(self, work: Callable[[Tx], T]) -> T:
        # nothing runs beside it, so a conflict comes from what the work read earlier, and there is
        # nothing to wait for
        for _ in CONFLICT_PAUSES_S:
            try:
                return self._once(work)
            except ConflictError:
                continue
        return self._once(work)

    @override
    async def close(self) -> None:
        """Nothing to let go of."""

    def _once(self, work: Callable[[Tx], T]) -> T:
        journal = Journal()
        try:
            return work(MemoryTx(self._shelves, journal))
        except BaseException:
            journal.roll_back()
            raise
