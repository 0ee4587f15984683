"""Lines of batches and their leases: the hot path, a few set statements whatever the number.

Every write of lines ends with the same change to their batch's counts, in the same transaction. The
statements are built once for each database, since building one costs more than running it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from operator import itemgetter

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Integer,
    and_,
    bindparam,
    delete,
    false,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    true,
    update,
)
from typing_extensions import override

from hpcserve.domain.batch import (
    BATCH_REQUEST,
    Batch,
    Lease,
    LeasedRequest,
    NewRequest,
    RequestEvent,
    RequestState,
    Result,
)
from hpcserve.errors import FencedError
from hpcserve.ledger.dialect import Dialect
from hpcserve.ledger.tables import batch_counts as counts
from hpcserve.ledger.tables import batch_requests as lines
from hpcserve.ledger.tables import leases
from hpcserve.ports.ledger import RequestStore

#: what each outcome makes of a leased line
OUTCOMES = {
    event: BATCH_REQUEST.edges[RequestState.LEASED][event]
    for event in (RequestEvent.ANSWERED, RequestEvent.REFUSED, RequestEvent.EXHAUSTED)
}
_OPEN = (RequestState.WAITING, RequestState.LEASED)
_AT = leases.c.expires_at.type
#: a literal, so that the partial index can serve it
_HOLDS = leases.c.open_lines > literal_column("0")


def _is(keys: CTE) -> ColumnElement[bool]:
    """Return the condition that a line is one of *keys*."""
    return and_(lines.c.batch_seq == keys.c.batch_seq, lines.c.line_no == keys.c.line_no)


class RequestStatements:
    """The statements of one database."""

    def __init__(self, dialect: Dialect) -> None:
        """Build them all."""
        seq, lease = bindparam("seq", type_=Integer), bindparam("lease", type_=Integer)
        at = bindparam("now", type_=_AT)
        in_batch = lines.c.batch_seq == seq
        held = and_(lines.c.lease_id == lease, lines.c.state == RequestState.LEASED)
        named = _is(dialect.named(seq))

        some_again = select(lines.c.line_no).where(lines.c.handed_back, in_batch).exists()
        self.lock_counts = (
            select(
                counts.c.next_line,
                counts.c.waiting,
                counts.c.leased,
                some_again.label("some_again"),
            )
            .where(counts.c.batch_seq == seq)
            .with_for_update()
        )
        where_it_lies = (
            lines.c.line_no,
            lines.c.input_offset,
            lines.c.input_length,
            lines.c.attempts,
        )
        limit = bindparam("limit", type_=Integer)
        again = (
            select(lines.c.batch_seq, lines.c.line_no)
            .where(lines.c.handed_back, in_batch)
            .order_by(lines.c.line_no)
            .limit(limit)
            .cte("again")
            .prefix_with("MATERIALIZED")
        )
        self.choose_again = select(*where_it_lies).where(_is(again)).order_by(lines.c.line_no)
        self.choose_fresh = (
            select(*where_it_lies)
            .where(
                in_batch,
                lines.c.line_no >= bindparam("next"),
                lines.c.state == RequestState.WAITING,
                ~lines.c.handed_back,
            )
            .order_by(lines.c.line_no)
            .limit(limit)
        )
        self.grant = (
            insert(leases)
            .values(
                batch_seq=seq,
                instance_id=bindparam("instance"),
                granted_at=at,
                expires_at=bindparam("until", type_=_AT),
                first_line=bindparam("first"),
                last_line=bindparam("last"),
                open_lines=bindparam("n"),
            )
            .returning(leases.c.id)
        )
        taken = {
            lines.c.state: RequestState.LEASED,
            lines.c.handed_back: false(),
            lines.c.lease_id: lease,
        }
        self.take_again = update(lines).where(named, lines.c.handed_back).values(taken)
        # between the first and the last fresh line that were chosen, all that wait were chosen
        self.take_fresh = (
            update(lines)
            .where(
                in_batch,
                lines.c.line_no.between(bindparam("first"), bindparam("last")),
                lines.c.state == RequestState.WAITING,
                ~lines.c.handed_back,
            )
            .values(taken)
        )
        self.count_leased = (
            update(counts)
            .where(counts.c.batch_seq == seq)
            .values(
                waiting=counts.c.waiting - bindparam("n"),
                leased=counts.c.leased + bindparam("n"),
                next_line=bindparam("next"),
            )
        )

        self.renew = (
            update(leases)
            .where(leases.c.instance_id == bindparam("instance"), _HOLDS)
            .values(expires_at=bindparam("until", type_=_AT))
            .returning(leases.c.id)
        )
        self.lock_lease = (
            select(leases.c.batch_seq, leases.c.first_line, leases.c.last_line)
            .where(
                leases.c.id == lease,
                leases.c.instance_id == bindparam("instance"),
                ~leases.c.lapsed,
            )
            .with_for_update()
        )
        self.shrink_lease = (
            update(leases)
            .where(leases.c.id == lease)
            .values(open_lines=leases.c.open_lines - bindparam("n"))
        )

        places = dialect.places(seq)
        self.settle = (
            update(lines)
            .where(_is(places), held)
            .values(
                state=bindparam("to", type_=lines.c.state.type),
                segment=bindparam("into"),
                result_offset=places.c.result_offset,
                result_length=places.c.result_length,
            )
            .returning(lines.c.line_no)
        )
        self.count_settled = (
            update(counts)
            .where(counts.c.batch_seq == seq)
            .values(
                leased=counts.c.leased - bindparam("n"),
                completed=counts.c.completed + bindparam("completed_now"),
                failed=counts.c.failed + bindparam("failed_now"),
                input_tokens=counts.c.input_tokens + bindparam("input"),
                cached_tokens=counts.c.cached_tokens + bindparam("cached"),
                output_tokens=counts.c.output_tokens + bindparam("output"),
                first_result_at=func.coalesce(counts.c.first_result_at, at),
            )
        )

        waiting_again = {
            lines.c.state: RequestState.WAITING,
            lines.c.handed_back: true(),
            lines.c.lease_id: null(),
        }
        self.release = (
            update(lines)
            .where(in_batch, lines.c.line_no.between(bindparam("first"), bindparam("last")), held)
            .values(waiting_again)
        )
        self.release_some = (
            update(lines).where(named, held).values(waiting_again).returning(lines.c.line_no)
        )
        self.count_handed_back = (
            update(counts)
            .where(counts.c.batch_seq == seq)
            .values(
                leased=counts.c.leased - bindparam("n"), waiting=counts.c.waiting + bindparam("n")
            )
        )

        listed = dialect.among(leases.c.id)
        self.lapse_lines = (
            update(lines)
            .where(
                listed,
                lines.c.batch_seq == leases.c.batch_seq,
                lines.c.line_no.between(leases.c.first_line, leases.c.last_line),
                lines.c.lease_id == leases.c.id,
                lines.c.state == RequestState.LEASED,
            )
            .values({**waiting_again, lines.c.attempts: lines.c.attempts + 1})
        )
        self.lapse_leases = update(leases).where(listed).values(open_lines=0, lapsed=true())
        self.lapsed_out = (
            select(lines.c.batch_seq, lines.c.line_no, lines.c.attempts)
            .where(lines.c.handed_back, lines.c.attempts >= bindparam("attempts_max"))
            .order_by(lines.c.batch_seq, lines.c.line_no)
            .limit(limit)
        )

        self.lock_batch_leases = (
            select(leases.c.id)
            .where(leases.c.batch_seq == seq, _HOLDS)
            .order_by(leases.c.id)
            .with_for_update()
        )
        to = {
            lines.c.state: bindparam("to", type_=lines.c.state.type),
            lines.c.handed_back: false(),
        }
        is_open = lines.c.state.in_(_OPEN)
        self.close = update(lines).where(in_batch, is_open).values(to)
        self.close_some = update(lines).where(named, is_open).values(to).returning(lines.c.lease_id)
        self.close_leases = (
            update(leases).where(leases.c.batch_seq == seq, _HOLDS).values(open_lines=0)
        )
        self.count_closed = {
            state: update(counts)
            .where(counts.c.batch_seq == seq)
            .values(
                {
                    counts.c.waiting: counts.c.waiting - bindparam("n_waiting"),
                    counts.c.leased: counts.c.leased - bindparam("n_leased"),
                    counts.c[state.value]: counts.c[state.value] + bindparam("n"),
                }
            )
            for state in (RequestState.CANCELLED, RequestState.EXPIRED, RequestState.FAILED)
        }

        self.results = (
            select(
                lines.c.line_no,
                func.coalesce(lines.c.segment, -1),
                func.coalesce(lines.c.result_offset, 0),
                func.coalesce(lines.c.result_length, 0),
            )
            .where(
                in_batch,
                lines.c.line_no > bindparam("after"),
                lines.c.state == bindparam("state", type_=lines.c.state.type),
            )
            .order_by(lines.c.line_no)
            .limit(limit)
        )
        self.inputs = (
            select(lines.c.line_no, lines.c.input_offset, lines.c.input_length)
            .where(named)
            .order_by(lines.c.line_no)
        )


class SqlRequests(RequestStore):
    """Rows of `batch_requests` and `leases`."""

    def __init__(
        self, connection: Connection, dialect: Dialect, statements: RequestStatements
    ) -> None:
        self._connection = connection
        self._dialect = dialect
        self._do = statements

    @override
    def add(self, batch_seq: int, requests: Iterable[NewRequest]) -> int:
        n = self._dialect.insert_lines(self._connection, batch_seq, requests)
        self._connection.execute(
            update(counts)
            .where(counts.c.batch_seq == batch_seq)
            .values(waiting=counts.c.waiting + n, next_line=0)
        )
        return n

    @override
    def discard(self, batch_seq: int) -> None:
        self._connection.execute(delete(lines).where(lines.c.batch_seq == batch_seq))
        self._connection.execute(
            update(counts)
            .where(counts.c.batch_seq == batch_seq)
            .values(dict.fromkeys((s.value for s in BATCH_REQUEST.states), 0))
        )

    @override
    def lease(
        self, *, batch: Batch, instance_id: str, limit: int, now: datetime, ttl_s: float
    ) -> Lease | None:
        execute, seq = self._connection.execute, batch.seq
        stand = execute(self._do.lock_counts, {"seq": seq}).one_or_none()
        if stand is None or not stand.waiting or limit < 1:
            return None
        again: Sequence[Sequence[int]] = ()
        fresh: Sequence[Sequence[int]] = ()
        if stand.some_again:
            again = execute(self._do.choose_again, {"seq": seq, "limit": limit}).all()
        if len(again) < limit:
            which = {"seq": seq, "next": stand.next_line, "limit": limit - len(again)}
            fresh = execute(self._do.choose_fresh, which).all()
        if not again and not fresh:
            # all that waits was handed back while the first statement waited for its lock
            again = execute(self._do.choose_again, {"seq": seq, "limit": limit}).all()
        chosen = sorted((*again, *fresh), key=itemgetter(0)) if again else fresh
        next_line = fresh[-1][0] + 1 if fresh else stand.next_line
        n = len(chosen)
        expires_at = now + timedelta(seconds=ttl_s)
        lease_id = execute(
            self._do.grant,
            {
                "seq": seq,
                "instance": instance_id,
                "now": now,
                "until": expires_at,
                "first": chosen[0][0],
                "last": chosen[-1][0],
                "n": n,
            },
        ).scalar_one()
        if again:
            numbers = self._dialect.numbers([line[0] for line in again])
            execute(self._do.take_again, {"seq": seq, "lease": lease_id, "numbers": numbers})
        if fresh:
            bounds = {"first": fresh[0][0], "last": fresh[-1][0]}
            taken = execute(self._do.take_fresh, {"seq": seq, "lease": lease_id, **bounds})
            assert taken.rowcount == len(fresh), "a line changed under the lock of its batch"
        execute(self._do.count_leased, {"seq": seq, "n": n, "next": next_line})
        return Lease(
            id=lease_id,
            instance_id=instance_id,
            batch_id=batch.id,
            batch_seq=seq,
            granted_at=now,
            expires_at=expires_at,
            requests=tuple(
                LeasedRequest(
                    batch_id=batch.id,
                    batch_seq=seq,
                    line_no=line_no,
                    offset=offset,
                    length=length,
                    attempts=attempts,
                )
                for line_no, offset, length, attempts in chosen
            ),
        )

    @override
    def renew(self, instance_id: str, now: datetime, ttl_s: float) -> tuple[int, ...]:
        renewed = self._connection.execute(
            self._do.renew, {"instance": instance_id, "until": now + timedelta(seconds=ttl_s)}
        )
        return tuple(sorted(renewed.scalars()))

    @override
    def settle(
        self, *, lease_id: int, instance_id: str, results: Sequence[Result], now: datetime
    ) -> frozenset[int]:
        execute = self._connection.execute
        lease = execute(
            self._do.lock_lease, {"lease": lease_id, "instance": instance_id}
        ).one_or_none()
        if lease is None:
            raise FencedError(
                f"lease {lease_id} is not instance {instance_id}'s any more;"
                " its results are not taken"
            )
        # of two results for one line the first counts
        by_line = {result.line_no: result for result in reversed(results)}
        # nearly always one group: all answered, all in the segment of this instance
        groups: defaultdict[tuple[RequestState, int], list[Result]] = defaultdict(list)
        for result in by_line.values():
            groups[OUTCOMES[result.event], result.segment].append(result)
        which = {"seq": lease.batch_seq, "lease": lease_id}
        by_state: Counter[RequestState] = Counter()
        taken: list[int] = []
        for (state, segment), group in groups.items():
            places = self._dialect.place_parameters(group)
            won = execute(self._do.settle, {**which, "to": state, "into": segment, **places})
            before = len(taken)
            taken += won.scalars().all()
            by_state[state] += len(taken) - before
        if not taken:
            return frozenset()
        tokens_in = tokens_cached = tokens_out = 0
        for line_no in taken:
            result = by_line[line_no]
            tokens_in += result.input_tokens
            tokens_cached += result.cached_tokens
            tokens_out += result.output_tokens
        execute(self._do.shrink_lease, {"lease": lease_id, "n": len(taken)})
        execute(
            self._do.count_settled,
            {
                "seq": lease.batch_seq,
                "n": len(taken),
                "completed_now": by_state[RequestState.COMPLETED],
                "failed_now": by_state[RequestState.FAILED],
                "input": tokens_in,
                "cached": tokens_cached,
                "output": tokens_out,
                "now": now,
            },
        )
        return frozenset(taken)

    @override
    def release(self, *, lease_id: int, instance_id: str, line_nos: Sequence[int] | None) -> int:
        execute = self._connection.execute
        lease = execute(
            self._do.lock_lease, {"lease": lease_id, "instance": instance_id}
        ).one_or_none()
        if lease is None:
            return 0
        which = {"seq": lease.batch_seq, "lease": lease_id}
        n: int
        if line_nos is None:
            bounds = {"first": lease.first_line, "last": lease.last_line}
            n = execute(self._do.release, {**which, **bounds}).rowcount
        else:
            numbers = self._dialect.numbers(line_nos)
            released = execute(self._do.release_some, {**which, "numbers": numbers})
            n = len(released.all())
        if n:
            execute(self._do.shrink_lease, {"lease": lease_id, "n": n})
            execute(self._do.count_handed_back, {"seq": lease.batch_seq, "n": n})
        return n

    @override
    def lapse(self, now: datetime, *, instance_ids: Sequence[str] = ()) -> int:
        execute = self._connection.execute
        lost = execute(
            select(leases.c.id, leases.c.batch_seq, leases.c.open_lines)
            .where(
                _HOLDS,
                or_(leases.c.expires_at <= now, leases.c.instance_id.in_(instance_ids)),
            )
            .order_by(leases.c.id)
            # one that is being settled right now is looked at again the next time
            .with_for_update(skip_locked=True)
        ).all()
        if not lost:
            return 0
        ids = {"numbers": self._dialect.numbers([lease.id for lease in lost])}
        lapsed: int = execute(self._do.lapse_lines, ids).rowcount
        execute(self._do.lapse_leases, ids)
        by_batch: Counter[int] = Counter()
        for lease in lost:
            by_batch[lease.batch_seq] += lease.open_lines
        assert lapsed == by_batch.total(), "leases and lines disagree on what is leased"
        execute(
            self._do.count_handed_back,
            [{"seq": seq, "n": by_batch[seq]} for seq in sorted(by_batch)],
        )
        return lapsed

    @override
    def lapsed_out(self, max_attempts: int, limit: int) -> tuple[tuple[int, int, int], ...]:
        rows = self._connection.execute(
            self._do.lapsed_out, {"attempts_max": max_attempts, "limit": limit}
        )
        return tuple((seq, line_no, attempts) for seq, line_no, attempts in rows)

    @override
    def close(
        self, batch_seq: int, state: RequestState, *, line_nos: Sequence[int] | None = None
    ) -> int:
        execute, seq = self._connection.execute, {"seq": batch_seq}
        execute(self._do.lock_batch_leases, seq).all()
        stand = execute(self._do.lock_counts, seq).one_or_none()
        if stand is None:
            return 0
        if line_nos is None:
            n_waiting: int = stand.waiting
            n_leased: int = stand.leased
            if n_waiting + n_leased:
                execute(self._do.close, {**seq, "to": state})
                execute(self._do.close_leases, seq)
        else:
            numbers = self._dialect.numbers(line_nos)
            closed = execute(self._do.close_some, {**seq, "to": state, "numbers": numbers})
            by_lease = Counter(closed.scalars())
            n_waiting = by_lease.pop(None, 0)
            n_leased = sum(by_lease.values())
            if by_lease:
                execute(
                    self._do.shrink_lease,
                    [{"lease": lease, "n": by_lease[lease]} for lease in sorted(by_lease)],
                )
        n = n_waiting + n_leased
        if n:
            execute(
                self._do.count_closed[state],
                {**seq, "n": n, "n_waiting": n_waiting, "n_leased": n_leased},
            )
        return n

    @override
    def results(
        self, batch_seq: int, state: RequestState, *, after_line: int, limit: int
    ) -> tuple[tuple[int, int, int, int], ...]:
        rows = self._connection.execute(
            self._do.results,
            {"seq": batch_seq, "state": state, "after": after_line, "limit": limit},
        )
        return tuple((line, segment, start, length) for line, segment, start, length in rows)

    @override
    def inputs(self, batch_seq: int, line_nos: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
        rows = self._connection.execute(
            self._do.inputs, {"seq": batch_seq, "numbers": self._dialect.numbers(line_nos)}
        )
        return tuple((line_no, offset, length) for line_no, offset, length in rows)
