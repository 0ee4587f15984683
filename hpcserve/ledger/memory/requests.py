"""Lines of batches and their leases, in memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice, pairwise

from typing_extensions import override

from hpcserve.domain.batch import (
    BATCH_REQUEST,
    Batch,
    Lease,
    LeasedRequest,
    NewRequest,
    RequestCounts,
    RequestState,
    Result,
    TokenUsage,
)
from hpcserve.errors import ConflictError, FencedError
from hpcserve.ledger.memory.journal import Journal
from hpcserve.ledger.memory.shelves import HeldLease, Line, Shelves, Tally
from hpcserve.ports.ledger import RequestStore

_OPEN = (RequestState.WAITING, RequestState.LEASED)


class MemoryRequests(RequestStore):
    """Lines by number, with a tally for each batch."""

    def __init__(self, shelves: Shelves, journal: Journal) -> None:
        self._shelves = shelves
        self._journal = journal

    @override
    def add(self, batch_seq: int, requests: Iterable[NewRequest]) -> int:
        lines = self._shelves.lines[batch_seq]
        tally = self._shelves.tallies[batch_seq]
        added = []
        for request in requests:
            if request.line_no in lines:
                raise ConflictError(
                    f"the ledger has such a row already: line {request.line_no} of {batch_seq}"
                )
            line = Line(request.line_no, request.offset, request.length)
            self._journal.put(lines, request.line_no, line)
            added.append(request.line_no)
        order = tally.order + tuple(added)
        if any(before > after for before, after in pairwise(order)):
            order = tuple(sorted(order))
        counts = replace(
            tally.counts,
            total=tally.counts.total + len(added),
            waiting=tally.counts.waiting + len(added),
        )
        self._put(batch_seq, replace(tally, order=order, fresh=0, counts=counts))
        return len(added)

    @override
    def discard(self, batch_seq: int) -> None:
        self._journal.put(self._shelves.lines, batch_seq, {})
        tally = self._shelves.tallies[batch_seq]
        self._put(
            batch_seq,
            replace(tally, counts=RequestCounts(), order=(), fresh=0, handed_back=()),
        )

    @override
    def lease(
        self, *, batch: Batch, instance_id: str, limit: int, now: datetime, ttl_s: float
    ) -> Lease | None:
        tally = self._shelves.tallies.get(batch.seq)
        if tally is None or not tally.counts.waiting or limit < 1:
            return None
        lines = self._shelves.lines[batch.seq]
        fresh, chosen_fresh = tally.fresh, list[int]()
        back = tally.handed_back[:limit]
        while fresh < len(tally.order) and len(back) + len(chosen_fresh) < limit:
            line_no = tally.order[fresh]
            if lines[line_no].state is RequestState.WAITING and line_no not in back:
                chosen_fresh.append(line_no)
            fresh += 1
        lease_id = len(self._shelves.leases) + 1
        expires_at = now + timedelta(seconds=ttl_s)
        chosen = tuple(sorted((*back, *chosen_fresh)))
        for line_no in chosen:
            leased = replace(lines[line_no], state=RequestState.LEASED, lease_id=lease_id)
            self._journal.put(lines, line_no, leased)
        held = HeldLease(
            id=lease_id,
            batch_seq=batch.seq,
            instance_id=instance_id,
            expires_at=expires_at,
            line_nos=chosen,
            open_lines=len(chosen),
        )
        self._put_lease(held)
        self._put(
            batch.seq,
            replace(tally, fresh=fresh, handed_back=tally.handed_back[len(back) :]),
            waiting=-len(chosen),
            leased=len(chosen),
        )
        return Lease(
            id=lease_id,
            instance_id=instance_id,
            batch_id=batch.id,
            batch_seq=batch.seq,
            granted_at=now,
            expires_at=expires_at,
            requests=tuple(
                LeasedRequest(
                    batch_id=batch.id,
                    batch_seq=batch.seq,
                    line_no=line.line_no,
                    offset=line.offset,
                    length=line.length,
                    attempts=line.attempts,
                )
                for line in (lines[line_no] for line_no in chosen)
            ),
        )

    @override
    def renew(self, instance_id: str, now: datetime, ttl_s: float) -> tuple[int, ...]:
        held = [x for x in self._shelves.open_leases.values() if x.instance_id == instance_id]
        until = now + timedelta(seconds=ttl_s)
        for lease in held:
            self._put_lease(replace(lease, expires_at=until))
        return tuple(sorted(lease.id for lease in held))

    @override
    def settle(
        self, *, lease_id: int, instance_id: str, results: Sequence[Result], now: datetime
    ) -> frozenset[int]:
        lease = self._held(lease_id, instance_id)
        if lease is None:
            raise FencedError(
                f"lease {lease_id} is not instance {instance_id}'s any more;"
                " its results are not taken"
            )
        lines = self._shelves.lines[lease.batch_seq]
        taken: list[Result] = []
        states: list[RequestState] = []
        for result in results:
            line = lines.get(result.line_no)
            if line is None or not _is_held(line, lease_id):
                continue
            state = BATCH_REQUEST.next(str(result.line_no), line.state, result.event)
            place = (result.segment, result.offset, result.length)
            self._journal.put(lines, result.line_no, replace(line, state=state, result=place))
            taken.append(result)
            states.append(state)
        if not taken:
            return frozenset()
        tally = self._shelves.tallies[lease.batch_seq]
        usage = TokenUsage(
            input_tokens=tally.usage.input_tokens + sum(r.input_tokens for r in taken),
            cached_tokens=tally.usage.cached_tokens + sum(r.cached_tokens for r in taken),
            output_tokens=tally.usage.output_tokens + sum(r.output_tokens for r in taken),
        )
        self._shrink(lease, len(taken))
        self._put(
            lease.batch_seq,
            replace(tally, usage=usage, first_result_at=tally.first_result_at or now),
            leased=-len(taken),
            completed=states.count(RequestState.COMPLETED),
            failed=states.count(RequestState.FAILED),
        )
        return frozenset(r.line_no for r in taken)

    @override
    def release(self, *, lease_id: int, instance_id: str, line_nos: Sequence[int] | None) -> int:
        lease = self._held(lease_id, instance_id)
        if lease is None:
            return 0
        return self._hand_back(lease, lease.line_nos if line_nos is None else line_nos, attempts=0)

    @override
    def lapse(self, now: datetime, *, instance_ids: Sequence[str] = ()) -> int:
        lost = [
            lease
            for lease in self._shelves.open_leases.values()
            if lease.expires_at <= now or lease.instance_id in instance_ids
        ]
        lapsed = 0
        for lease in lost:
            lapsed += self._hand_back(lease, lease.line_nos, attempts=1)
            self._put_lease(replace(lease, open_lines=0, lapsed=True))
        return lapsed

    @override
    def lapsed_out(self, max_attempts: int, limit: int) -> tuple[tuple[int, int, int], ...]:
        out = (
            (seq, line_no, self._shelves.lines[seq][line_no].attempts)
            for seq, tally in sorted(self._shelves.tallies.items())
            for line_no in tally.handed_back
            if self._shelves.lines[seq][line_no].attempts >= max_attempts
        )
        return tuple(islice(out, limit))

    @override
    def close(
        self, batch_seq: int, state: RequestState, *, line_nos: Sequence[int] | None = None
    ) -> int:
        tally = self._shelves.tallies.get(batch_seq)
        if tally is None:
            return 0
        lines = self._shelves.lines[batch_seq]
        waiting = leased = 0
        for line_no in tally.order if line_nos is None else line_nos:
            line = lines.get(line_no)
            if line is None or line.state not in _OPEN:
                continue
            if line.state is RequestState.WAITING:
                waiting += 1
            else:
                leased += 1
                self._shrink(self._shelves.leases[line.lease_id or 0], 1)
            self._journal.put(lines, line_no, replace(line, state=state))
        back = tuple(n for n in tally.handed_back if lines[n].state is RequestState.WAITING)
        self._put(
            batch_seq,
            replace(tally, handed_back=back),
            waiting=-waiting,
            leased=-leased,
            **{state.value: waiting + leased},
        )
        return waiting + leased

    @override
    def results(
        self, batch_seq: int, state: RequestState, *, after_line: int, limit: int
    ) -> tuple[tuple[int, int, int, int], ...]:
        lines = self._shelves.lines[batch_seq]
        order = self._shelves.tallies[batch_seq].order
        ended = (
            (line_no, *lines[line_no].result)
            for line_no in islice(order, bisect_left(order, after_line + 1), None)
            if lines[line_no].state is state
        )
        return tuple(islice(ended, limit))

    @override
    def inputs(self, batch_seq: int, line_nos: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
        lines = self._shelves.lines[batch_seq]
        wanted = [lines[line_no] for line_no in sorted(set(line_nos)) if line_no in lines]
        return tuple((line.line_no, line.offset, line.length) for line in wanted)

    def _held(self, lease_id: int, instance_id: str) -> HeldLease | None:
        lease = self._shelves.leases.get(lease_id)
        if lease is None or lease.instance_id != instance_id or lease.lapsed:
            return None
        return lease

    def _hand_back(self, lease: HeldLease, line_nos: Sequence[int], *, attempts: int) -> int:
        lines = self._shelves.lines[lease.batch_seq]
        back = []
        for line_no in line_nos:
            line = lines.get(line_no)
            if line is None or not _is_held(line, lease.id):
                continue
            waiting = replace(
                line,
                state=RequestState.WAITING,
                lease_id=None,
                attempts=line.attempts + attempts,
            )
            self._journal.put(lines, line_no, waiting)
            back.append(line_no)
        if back:
            self._shrink(lease, len(back))
            tally = self._shelves.tallies[lease.batch_seq]
            self._put(
                lease.batch_seq,
                replace(tally, handed_back=tuple(sorted((*tally.handed_back, *back)))),
                waiting=len(back),
                leased=-len(back),
            )
        return len(back)

    def _shrink(self, lease: HeldLease, lines: int) -> None:
        self._put_lease(replace(lease, open_lines=lease.open_lines - lines))

    def _put_lease(self, lease: HeldLease) -> None:
        self._journal.put(self._shelves.leases, lease.id, lease)
        if lease.open_lines:
            self._journal.put(self._shelves.open_leases, lease.id, lease)
        else:
            self._journal.remove(self._shelves.open_leases, lease.id)

    def _put(self, batch_seq: int, tally: Tally, **changes: int) -> None:
        counts = replace(
            tally.counts,
            **{state: getattr(tally.counts, state) + n for state, n in changes.items()},
        )
        self._journal.put(self._shelves.tallies, batch_seq, replace(tally, counts=counts))


def _is_held(line: Line, lease_id: int) -> bool:
    return line.state is RequestState.LEASED and line.lease_id == lease_id
