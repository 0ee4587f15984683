"""A random life of one batch, against a model that is a dictionary.

The model says of each line where it is; the ledger must agree after every step: which lines a lease
gets, which results it takes, who is fenced, and every count.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hpcserve.domain.batch import (
    Batch,
    BatchState,
    Lease,
    NewRequest,
    RequestEvent,
    RequestState,
    Result,
)
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.errors import FencedError
from hpcserve.ports.ledger import Ledger, Tx
from tests.builders import NOW

T = TypeVar("T")
TTL_S = 10.0
INSTANCES = ("inst-1", "inst-2", "inst-3")
OUTCOMES = {
    RequestEvent.ANSWERED: RequestState.COMPLETED,
    RequestEvent.REFUSED: RequestState.FAILED,
    RequestEvent.EXHAUSTED: RequestState.FAILED,
}
#: picks some of a list by index, so that a failing example shrinks
some = st.lists(st.integers(0, 50), max_size=6)
instances = st.sampled_from(INSTANCES)


class Lines(RuleBasedStateMachine):
    """The machine; a subclass says which ledger."""

    @staticmethod
    def open() -> Ledger:
        """Return an empty ledger."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.ledger = self.open()
        self.now: datetime = NOW
        self.state: dict[int, RequestState] = {}
        self.attempts: Counter[int] = Counter()
        self.holder: dict[int, int] = {}
        self.leases: list[Lease] = []
        self.expires_at: dict[int, datetime] = {}
        self.lapsed: set[int] = set()
        self.tokens = 0
        self.batch = self.do(self._begin)

    def teardown(self) -> None:
        self.loop.run_until_complete(self.ledger.close())
        self.loop.close()

    def do(self, work: Callable[[Tx], T]) -> T:
        return self.loop.run_until_complete(self.ledger.transact(work))

    @staticmethod
    def _begin(tx: Tx) -> Batch:
        batch = Batch(
            id="batch-1",
            owner="ada",
            model="m",
            endpoint="/v1/completions",
            input_file_id="file-1",
            completion_window="1h",
            state=BatchState.IN_PROGRESS,
            created_at=NOW,
            deadline_at=NOW,
        )
        made = Transition(
            subject=Subject.BATCH,
            subject_id=batch.id,
            at=NOW,
            event="created",
            from_state=None,
            to_state=batch.state,
            reason="a test",
        )
        return tx.batches.add(batch, made)

    @initialize(n=st.integers(1, 20))
    def begin(self, n: int) -> None:
        self.add(n)

    @rule(n=st.integers(1, 5))
    def add(self, n: int) -> None:
        first = len(self.state) + 1
        new = [NewRequest(line_no=i, offset=i, length=1) for i in range(first, first + n)]
        assert self.do(lambda tx: tx.requests.add(self.batch.seq, new)) == n
        self.state |= dict.fromkeys(range(first, first + n), RequestState.WAITING)

    @rule(instance=instances, limit=st.integers(1, 8))
    def lease(self, instance: str, limit: int) -> None:
        lease = self.do(
            lambda tx: tx.requests.lease(
                batch=self.batch, instance_id=instance, limit=limit, now=self.now, ttl_s=TTL_S
            )
        )
        waiting = sorted(n for n, state in self.state.items() if state is RequestState.WAITING)
        if not waiting:
            assert lease is None
            return
        assert lease is not None
        assert [r.line_no for r in lease.requests] == waiting[:limit]
        assert [r.attempts for r in lease.requests] == [self.attempts[n] for n in waiting[:limit]]
        assert all(lease.id > earlier.id for earlier in self.leases)
        self.leases.append(lease)
        self.expires_at[lease.id] = lease.expires_at
        for n in waiting[:limit]:
            self.state[n] = RequestState.LEASED
            self.holder[n] = lease.id

    @rule(which=st.integers(0, 20), picks=some, event=st.sampled_from(tuple(OUTCOMES)))
    def settle(self, which: int, picks: list[int], event: RequestEvent) -> None:
        if not self.leases:
            return
        lease = self.leases[which % len(self.leases)]
        named = [1 + pick % len(self.state) for pick in picks]
        results = [
            Result(
                line_no=n,
                event=event,
                segment=1,
                offset=n,
                length=1,
                input_tokens=1,
                cached_tokens=0,
                output_tokens=2,
            )
            for n in named
        ]
        try:
            taken = self.do(
                lambda tx: tx.requests.settle(
                    lease_id=lease.id,
                    instance_id=lease.instance_id,
                    results=results,
                    now=self.now,
                )
            )
        except FencedError:
            assert lease.id in self.lapsed
            return
        assert lease.id not in self.lapsed
        assert taken == {n for n in named if self._holds(lease.id, n)}
        self.tokens += 2 * len(taken)
        for n in taken:
            self.state[n] = OUTCOMES[event]

    @rule(which=st.integers(0, 20), picks=st.none() | some)
    def release(self, which: int, picks: list[int] | None) -> None:
        if not self.leases:
            return
        lease = self.leases[which % len(self.leases)]
        named = None if picks is None else [1 + pick % len(self.state) for pick in picks]
        released = self.do(
            lambda tx: tx.requests.release(
                lease_id=lease.id, instance_id=lease.instance_id, line_nos=named
            )
        )
        back = {n for n in self.state if (named is None or n in named) and self._holds(lease.id, n)}
        assert released == len(back)
        for n in back:
            self.state[n] = RequestState.WAITING

    @rule(instance=instances)
    def renew(self, instance: str) -> None:
        renewed = self.do(lambda tx: tx.requests.renew(instance, self.now, TTL_S))
        held = {
            lease.id
            for lease in self.leases
            if lease.instance_id == instance and any(self._holds(lease.id, n) for n in self.state)
        }
        assert set(renewed) == held
        self.expires_at |= dict.fromkeys(held, self.now + timedelta(seconds=TTL_S))

    @rule(seconds=st.sampled_from((0, 4, 11)), ended=st.lists(instances, max_size=1))
    def lapse(self, seconds: int, ended: list[str]) -> None:
        self.now += timedelta(seconds=seconds)
        lapsed = self.do(lambda tx: tx.requests.lapse(self.now, instance_ids=ended))
        lost = [
            lease.id
            for lease in self.leases
            if (self.expires_at[lease.id] <= self.now or lease.instance_id in ended)
            and any(self._holds(lease.id, n) for n in self.state)
        ]
        back = [n for n in self.state for lease_id in lost if self._holds(lease_id, n)]
        assert lapsed == len(back)
        self.lapsed |= set(lost)
        for n in back:
            self.state[n] = RequestState.WAITING
            self.attempts[n] += 1

    @rule(max_attempts=st.integers(1, 3))
    def lapsed_out(self, max_attempts: int) -> None:
        out = self.do(lambda tx: tx.requests.lapsed_out(max_attempts, 100))
        assert [(n, attempts) for _, n, attempts in out] == [
            (n, self.attempts[n])
            for n, state in sorted(self.state.items())
            if state is RequestState.WAITING and self.attempts[n] >= max_attempts
        ]

    @rule(
        picks=some,
        state=st.sampled_from((RequestState.FAILED, RequestState.CANCELLED, RequestState.EXPIRED)),
    )
    def close_some(self, picks: list[int], state: RequestState) -> None:
        named = [1 + pick % len(self.state) for pick in picks]
        self._close(named, state)

    @rule(dice=st.integers(0, 9))
    def close_all(self, dice: int) -> None:
        if dice == 0:
            self._close(None, RequestState.CANCELLED)

    def _close(self, named: list[int] | None, state: RequestState) -> None:
        closed = self.do(lambda tx: tx.requests.close(self.batch.seq, state, line_nos=named))
        ended = [
            n
            for n, at in self.state.items()
            if (named is None or n in named) and at in (RequestState.WAITING, RequestState.LEASED)
        ]
        assert closed == len(ended)
        self.state |= dict.fromkeys(ended, state)

    def _holds(self, lease_id: int, line_no: int) -> bool:
        return self.state[line_no] is RequestState.LEASED and self.holder.get(line_no) == lease_id

    @invariant()
    def counts_are_exact(self) -> None:
        stored = self.do(lambda tx: tx.batches.get("batch-1"))
        assert stored is not None
        by_state = Counter(self.state.values())
        assert stored.counts.total == len(self.state)
        for state in RequestState:
            assert getattr(stored.counts, state.value) == by_state[state], state
        assert stored.usage.output_tokens == self.tokens

    @invariant()
    def ended_lines_are_found_in_order(self) -> None:
        for state in (RequestState.COMPLETED, RequestState.FAILED, RequestState.CANCELLED):
            rows = self.do(
                lambda tx, state=state: tx.requests.results(
                    self.batch.seq, state, after_line=-1, limit=1000
                )
            )
            assert [row[0] for row in rows] == sorted(
                n for n in self.state if self.state[n] is state
            )
