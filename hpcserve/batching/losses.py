"""Work that was lost with its instance: who gets it back, and what that costs.

- An end that is no fault (preempted, walltime, node lost) costs the lines of that instance no
  attempt: they are released.
- A crash, or a lease that ran out without a word, costs one: one of its lines may be the cause.
- A line without attempts left is failed; its neighbours go on.
"""

from __future__ import annotations

from collections import defaultdict

from hpcserve.batching.finalise import EXHAUSTED
from hpcserve.batching.intake import Guard
from hpcserve.config.tree import Batching
from hpcserve.domain.batch import RequestState
from hpcserve.domain.instance import Instance
from hpcserve.domain.job import EndReason
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.ports.clock import Clock
from hpcserve.ports.ledger import Ledger, Tx

#: line numbers that a reason spells out
_SHOWN = 10


class Losses:
    """Takes leases back."""

    def __init__(self, *, ledger: Ledger, clock: Clock, settings: Batching, ended_max: int) -> None:
        """Take how many of the last ended instances are looked at."""
        self._ledger = ledger
        self._clock = clock
        self._settings = settings
        self._ended_max = ended_max
        self._seen: frozenset[str] = frozenset()

    async def recover(self, guard: Guard) -> None:
        """Return lost lines to those that wait, and fail those that were lost too often."""
        self._seen = await self._ledger.transact(lambda tx: self._take_back(tx, guard))
        while await self._ledger.transact(lambda tx: self._fail_exhausted(tx, guard)):
            pass

    def _take_back(self, tx: Tx, guard: Guard) -> frozenset[str]:
        guard(tx)
        now = self._clock.now()
        ended = tx.instances.ended(self._ended_max)
        fresh = [instance for instance in ended if instance.id not in self._seen]
        for instance in fresh:
            if not _is_suspicious(instance):
                for lease_id in tx.requests.renew(instance.id, now, self._settings.lease_ttl_s):
                    tx.requests.release(lease_id=lease_id, instance_id=instance.id, line_nos=None)
        crashed = tuple(instance.id for instance in fresh if _is_suspicious(instance))
        tx.requests.lapse(now, instance_ids=crashed)
        return frozenset(instance.id for instance in ended)

    def _fail_exhausted(self, tx: Tx, guard: Guard) -> bool:
        """Fail one page of used-up lines; True when there may be more."""
        guard(tx)
        page = self._settings.result_page
        spent = tx.requests.lapsed_out(self._settings.max_attempts, page)
        lines: dict[int, list[int]] = defaultdict(list)
        for batch_seq, line_no, _ in spent:
            lines[batch_seq].append(line_no)
        ids = {batch.seq: batch.id for batch in tx.batches.open()} if spent else {}
        for batch_seq, numbers in lines.items():
            tx.requests.close(batch_seq, RequestState.FAILED, line_nos=numbers)
            if batch_seq in ids:
                tx.events.append(self._exhausted(ids[batch_seq], numbers))
        return len(spent) == page

    def _exhausted(self, batch_id: str, numbers: list[int]) -> Transition:
        shown = ", ".join(str(number) for number in numbers[:_SHOWN])
        more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
        return Transition(
            subject=Subject.BATCH,
            subject_id=batch_id,
            at=self._clock.now(),
            event=EXHAUSTED,
            from_state=None,
            to_state=None,
            reason=f"lines {shown}{more} were lost with their instance "
            f"{self._settings.max_attempts} times and are failed",
            detail={"lines": numbers},
        )


def _is_suspicious(instance: Instance) -> bool:
    """Whether a request may have caused this end; what nobody can explain is suspicious."""
    reason = instance.end_reason
    return reason is None or reason.is_fault or reason is EndReason.LOST
