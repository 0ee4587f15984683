"""Lines and leases: exactly once, in order, counted, fenced."""

from __future__ import annotations

import pytest

from hpcserve.domain.batch import RequestCounts, RequestEvent, RequestState
from hpcserve.errors import FencedError
from hpcserve.ports.ledger import Ledger
from tests.builders import NOW, ahead
from tests.contract.ledger.work import (
    TTL_S,
    add_batch,
    answer,
    counts,
    ended_lines,
    lease,
    line_nos,
    lines,
    must_lease,
    release,
    settle,
)


async def test_a_lease_holds_the_first_waiting_lines_and_where_they_lie(ledger: Ledger) -> None:
    batch = await add_batch(ledger, 10)
    first = await must_lease(ledger, batch, 4)
    second = await must_lease(ledger, batch, 100, instance_id="inst-2")
    assert line_nos(first) == [1, 2, 3, 4]
    assert line_nos(second) == [5, 6, 7, 8, 9, 10]
    assert second.id > first.id
    assert first.expires_at == ahead(TTL_S)
    line = first.requests[2]
    assert (line.batch_id, line.batch_seq) == (batch.id, batch.seq)
    assert (line.offset, line.length, line.attempts) == (300, 90, 0)
    assert await lease(ledger, batch, 1) is None


async def test_a_lease_of_nothing_is_none(ledger: Ledger) -> None:
    batch = await add_batch(ledger)
    assert await lease(ledger, batch, 10) is None


async def test_lines_may_have_gaps_and_come_in_parts(ledger: Ledger) -> None:
    batch = await add_batch(ledger)
    for part in ((2, 5), (9,), (11, 400)):
        added = await ledger.transact(lambda tx, part=part: tx.requests.add(batch.seq, lines(part)))
        assert added == len(part)
    assert line_nos(await must_lease(ledger, batch, 4)) == [2, 5, 9, 11]
    assert await counts(ledger, batch) == RequestCounts(total=5, waiting=1, leased=4)


async def test_batches_do_not_share_lines(ledger: Ledger) -> None:
    one = await add_batch(ledger, 3)
    two = await add_batch(ledger, 3, batch_id="batch-2")
    assert line_nos(await must_lease(ledger, two, 2)) == [1, 2]
    assert line_nos(await must_lease(ledger, one, 9)) == [1, 2, 3]
    assert (await counts(ledger, two)).waiting == 1


async def test_results_are_taken_counted_and_found_in_input_order(ledger: Ledger) -> None:
    batch = await add_batch(ledger, 5)
    held = await must_lease(ledger, batch, 4)
    taken = await settle(
        ledger,
        held,
        answer(3),
        answer(1),
        answer(2, RequestEvent.REFUSED),
        answer(4, RequestEvent.EXHAUSTED),
    )
    assert taken == {1, 2, 3, 4}
    stored = await ledger.transact(lambda tx: tx.batches.get(batch.id))
    assert stored is not None
    assert stored.counts == RequestCounts(total=5, waiting=1, completed=2, failed=2)
    assert (stored.usage.input_tokens, stored.usage.output_tokens) == (40, 120)
    assert stored.usage.cached_tokens == 8
    assert stored.first_result_at == NOW
    completed = await ledger.transact(
        lambda tx: tx.requests.results(batch.seq, RequestState.COMPLETED, after_line=-1, limit=10)
    )
    assert completed == ((1, 7, 1000, 500), (3, 7, 3000, 500))
    page = await ledger.transact(
        lambda tx: tx.requests.results(batch.seq, RequestState.FAILED, after_line=2, limit=10)
    )
    assert page == ((4, 7, 4000, 500),)


async def test_a_second_settle_of_the_same_lines_takes_and_counts_nothing(ledger: Ledger) -> None:
    batch = await add_batch(ledger, 2)
    held = await must_lease(ledger, batch, 2)
    assert await settle(ledger, held, answer(1)) == {1}
    assert await settle(ledger, held, answer(1), answer(2), answer(2)) == {2}
    assert await settle(ledger, held, answer(1), answer(2)) == frozenset()
    stored = await ledger.transact(lambda tx: tx.batches.get(batch.id))
    assert stored is not None
    assert stored.counts == RequestCounts(total=2, completed=2)
    assert stored.usage.output_tokens == 60


async def test_a_line_outside_the_lease_is_not_taken(ledger: Ledger) -> None:
    batch = await add_batch(ledger, 6)
    mine = await must_lease(ledger, batch, 2)
    await must_lease(ledger, batch, 2, instance_id="inst-2")
    assert await settle(ledger, mine, answer(1), answer(3), answer(5), answer(99)) == {1}
    assert await counts(ledger, batch) == RequestCounts(total=6, waiting=2, leased=3, completed=1)


async def test_a_lease_is_its_instances_alone(ledger: Ledger) -> None:
    batch = await add_batch(ledger, 2)
    held = await must_lease(ledger, batch, 2)
    with pytest.raises(FencedError, match=r"lease \d+ is not instance thief's any more"):
        await ledger.transact(
            lambda tx: tx.requests.settle(
                lease_id=held.id, instance_id="thief", results=[answer(1)], now=NOW
            )
        )
    with pytest.raises(FencedError):
        await ledger.transact(
            lambda tx: tx.requests.settle(
                lease_id=held.id + 1, instance_id="inst-1", results=[answer(1)], now=NOW
            )
        )
    stolen = await ledger.transact(
        lambda tx: tx.requests.release(lease_id=held.id, instance_id="thief", line_nos=None)
    )
    assert stolen == 0


async def test_a_release_costs_no_attempt(ledger: Ledger) -> None:
    batch = await add_batch(ledger, 6)
    held = await must_lease(ledger, batch, 4)
    assert await release(ledger, held, 2, 3, 6) == 2
    assert await counts(ledger, batch) == RequestCounts(total=6, waiting=4, leased=2)
    again = await must_lease(ledger, batch, 3, instance_id="inst-2")
    assert [(r.line_no, r.attempts) for r in again.requests] == [(2, 0), (3, 0), (5, 0)]
    assert await settle(ledger, held, answer(2), answer(1)) == {1}
    assert await settle(ledger, again, answer(2)) == {2}


async def test_a_release_without_names_hands_back_what_is_left(ledger: Ledger) -> None:
    batch = await add_batch(ledger, 4)
    held = await must_lease(ledger, batch, 4)
    await settle(ledger, held, answer(2))
    assert await release(ledger, held) == 3
    assert await release(ledger, held) == 0
    assert await settle(ledger, held, answer(1)) == frozenset()
    assert line_nos(await must_lease(ledger, batch, 9)) == [1, 3, 4]


async def test_a_lapse_costs_an_attempt_and_fences_the_holder(ledger: Ledger) -> None:
    batch = await add_batch(ledger, 4)
    held = await must_lease(ledger, batch, 3)
    await settle(ledger, held, answer(1))
    early = await ledger.transact(lambda tx: tx.requests.lapse(ahead(TTL_S - 1)))
    assert early == 0
    assert await ledger.transact(lambda tx: tx.requests.lapse(ahead(TTL_S))) == 2
    assert await counts(ledger, batch) == RequestCounts(total=4, waiting=3, completed=1)
    with pytest.raises(FencedError):
        await settle(ledger, held, answer(2))
    again = await must_lease(ledger, batch, 9, instance_id="inst-2")
    assert [(r.line_no, r.attempts) for r in again.requests] == [(2, 1), (3, 1), (4, 0)]
    with pytest.raises(FencedError):
        await settle(ledger, held, answer(2))
    assert await release(ledger, held) == 0
    assert await settle(ledger, again, answer(2)) == {2}
    assert await ended_lines(ledger, batch, RequestState.COMPLETED) == [1, 2]


async def test_an_expired_lease_is_its_holders_until_it_lapses(ledger: Ledger) -> None:
    batch = await add_batch(ledger, 2)
    held = await must_lease(ledger, batch, 2)
    taken = await ledger.transact(
        lambda tx: tx.requests.settle(
            lease_id=held.id, instance_id="inst-1", results=[answer(1)], now=ahead(TTL_S + 9)
        )
    )
    assert taken == {1}


async def test_leases_of_named_instances_lapse_at_once(ledger: Ledger) -> None:
    batch = await add_batch(ledger, 4)
    gone = await must_lease(ledger, batch, 2)
    alive = await must_lease(ledger, batch, 2, instance_id="inst-2")
    lapsed = await ledger.transact(
        lambda tx: tx.requests.lapse(NOW, instance_ids=["inst-1", "inst-9"])
    )
    assert lapsed == 2
    with pytest.raises(FencedError):
        await settle(ledger, gone, answer(1))
    assert await settle(ledger, alive, answer(3)) == {3}


async def test_a_renewed_lease_lives_on(ledger: Ledger) -> None:
    batch = await add_batch(ledger, 4)
    done = await must_lease(ledger, batch, 1)
    await settle(ledger, done, answer(1))
    one = await must_lease(ledger, batch, 1)
    two = await must_lease(ledger, batch, 1)
    await must_lease(ledger, batch, 1, instance_id="inst-2")
    renewed = await ledger.transact(lambda tx: tx.requests.renew("inst-1", ahead(50), TTL_S))
    assert renewed == (one.id, two.id)
    assert await ledger.transact(lambda tx: tx.requests.lapse(ahead(TTL_S + 1))) == 1
    assert await ledger.transact(lambda tx: tx.requests.lapse(ahead(50 + TTL_S))) == 2


async def test_used_up_lines_are_found_and_closed(ledger: Ledger) -> None:
    batch = await add_batch(ledger, 3)
    for turn in range(2):
        await must_lease(ledger, batch, 2 - turn)
        await ledger.transact(lambda tx: tx.requests.lapse(NOW, instance_ids=["inst-1"]))
    assert await ledger.transact(lambda tx: tx.requests.lapsed_out(2, 10)) == ((batch.seq, 1, 2),)
    assert await ledger.transact(lambda tx: tx.requests.lapsed_out(1, 10)) == (
        (batch.seq, 1, 2),
        (batch.seq, 2, 1),
    )
    assert len(await ledger.transact(lambda tx: tx.requests.lapsed_out(1, 1))) == 1
    closed = await ledger.transact(
        lambda tx: tx.requests.close(batch.seq, RequestState.FAILED, line_nos=[1])
    )
    assert closed == 1
    assert await ledger.transact(lambda tx: tx.requests.lapsed_out(2, 10)) == ()
    assert await counts(ledger, batch) == RequestCounts(total=3, waiting=2, failed=1)
    failed = await ledger.transact(
        lambda tx: tx.requests.results(batch.seq, RequestState.FAILED, after_line=-1, limit=9)
    )
    assert failed == ((1, -1, 0, 0),)
    assert line_nos(await must_lease(ledger, batch, 9)) == [2, 3]


async def test_closing_a_batch_ends_open_lines_and_keeps_results(ledger: Ledger) -> None:
    batch = await add_batch(ledger, 6)
    other = await add_batch(ledger, 1, batch_id="batch-2")
    held = await must_lease(ledger, batch, 4)
    await settle(ledger, held, answer(1))
    await release(ledger, held, 2)
    closed = await ledger.transact(lambda tx: tx.requests.close(batch.seq, RequestState.CANCELLED))
    assert closed == 5
    assert await counts(ledger, batch) == RequestCounts(total=6, completed=1, cancelled=5)
    assert await settle(ledger, held, answer(3)) == frozenset()
    assert await lease(ledger, batch, 1) is None
    assert await ledger.transact(lambda tx: tx.requests.lapse(ahead(TTL_S))) == 0
    assert await ledger.transact(lambda tx: tx.requests.close(99, RequestState.EXPIRED)) == 0
    assert await counts(ledger, other) == RequestCounts(total=1, waiting=1)


async def test_closing_named_lines_takes_them_from_their_lease(ledger: Ledger) -> None:
    batch = await add_batch(ledger, 5)
    held = await must_lease(ledger, batch, 3)
    closed = await ledger.transact(
        lambda tx: tx.requests.close(batch.seq, RequestState.EXPIRED, line_nos=[2, 5, 77])
    )
    assert closed == 2
    assert await counts(ledger, batch) == RequestCounts(total=5, waiting=1, leased=2, expired=2)
    assert await settle(ledger, held, answer(1), answer(2), answer(3)) == {1, 3}
    assert await ledger.transact(lambda tx: tx.requests.lapse(ahead(TTL_S))) == 0


async def test_discarded_lines_are_gone(ledger: Ledger) -> None:
    batch = await add_batch(ledger, 5)
    await ledger.transact(lambda tx: tx.requests.discard(batch.seq))
    assert await counts(ledger, batch) == RequestCounts()
    await ledger.transact(lambda tx: tx.requests.add(batch.seq, lines([1, 2])))
    assert line_nos(await must_lease(ledger, batch, 9)) == [1, 2]


async def test_inputs_are_found_by_line(ledger: Ledger) -> None:
    batch = await add_batch(ledger, 5)
    found = await ledger.transact(lambda tx: tx.requests.inputs(batch.seq, [4, 2, 99]))
    assert found == ((2, 200, 90), (4, 400, 90))
