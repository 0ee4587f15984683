"""A transaction happens whole or not at all, and is tried again only where that can help."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import replace

import pytest

from hpcserve.domain.batch import RequestCounts, RequestState
from hpcserve.domain.lifecycle import Subject
from hpcserve.errors import BackendError, ConflictError
from hpcserve.ledger import open_ledger
from hpcserve.ledger.limits import CONFLICT_PAUSES_S
from hpcserve.ports.ledger import Ledger, Tx
from tests.builders import NOW, a_demand, an_instance
from tests.contract.ledger.postgres_server import PostgresServer
from tests.contract.ledger.work import (
    a_file,
    add_batch,
    add_instance,
    answer,
    born,
    counts,
    lines,
    must_lease,
)


class TornError(Exception):
    """What a test raises in the middle of a transaction."""


async def test_a_transaction_that_raises_leaves_nothing(ledger: Ledger) -> None:
    batch = await add_batch(ledger, 6)
    held = await must_lease(ledger, batch, 3)
    made = await add_instance(ledger)
    await ledger.transact(lambda tx: tx.files.add(a_file("file-keep")))

    def everything(tx: Tx) -> None:
        tx.instances.add(an_instance("inst-9"), born(Subject.INSTANCE, "inst-9"))
        tx.instances.save(replace(made, message="torn"), born(Subject.INSTANCE, made.id))
        tx.instances.heard(made.id, NOW, None, busy=True)
        tx.files.add(a_file("file-9"))
        tx.files.delete("file-keep")
        tx.segments.add("/nowhere")
        tx.demand.report("gw", [a_demand()])
        tx.leader.acquire("c1", NOW, 10)
        tx.notes.put("note", {"a": 1})
        tx.requests.settle(lease_id=held.id, instance_id="inst-1", results=[answer(1)], now=NOW)
        tx.requests.release(lease_id=held.id, instance_id="inst-1", line_nos=[2])
        tx.requests.lapse(NOW, instance_ids=["inst-1"])
        tx.requests.lease(batch=batch, instance_id="inst-2", limit=2, now=NOW, ttl_s=1)
        tx.requests.close(batch.seq, RequestState.FAILED)
        tx.requests.add(batch.seq, lines(range(10, 20)))
        tx.requests.discard(batch.seq)
        raise TornError

    with pytest.raises(TornError):
        await ledger.transact(everything)

    assert await counts(ledger, batch) == RequestCounts(total=6, waiting=3, leased=3)
    assert await ledger.transact(lambda tx: tx.instances.live()) == (made,)
    assert len(await ledger.transact(lambda tx: tx.events.story(Subject.INSTANCE, made.id))) == 1
    assert await ledger.transact(lambda tx: tx.files.get("file-9")) is None
    assert await ledger.transact(lambda tx: tx.files.get("file-keep")) is not None
    assert await ledger.transact(lambda tx: tx.demand.read(NOW)) == ()
    assert await ledger.transact(lambda tx: tx.leader.current()) is None
    assert await ledger.transact(lambda tx: tx.notes.get("note")) is None
    taken = await ledger.transact(
        lambda tx: tx.requests.settle(
            lease_id=held.id, instance_id="inst-1", results=[answer(1), answer(2)], now=NOW
        )
    )
    assert taken == {1, 2}


async def test_a_conflict_is_tried_again_with_fresh_rows(ledger: Ledger) -> None:
    read = await add_instance(ledger)
    await ledger.transact(lambda tx: tx.instances.save(read))
    seen = []

    def work(tx: Tx) -> str:
        # the first try works on what was read before
        fresh = tx.instances.get(read.id) if seen else read
        seen.append(fresh)
        assert fresh is not None
        tx.instances.save(replace(fresh, message="mine"))
        return "saved"

    assert await ledger.transact(work) == "saved"
    assert len(seen) == 2


async def test_a_lasting_conflict_ends_after_a_bounded_number_of_tries(
    ledger: Ledger,
) -> None:
    tries = []

    def work(_: Tx) -> None:
        tries.append(1)
        raise ConflictError("never")

    with pytest.raises(ConflictError, match="never"):
        await ledger.transact(work)
    assert len(tries) == 1 + len(CONFLICT_PAUSES_S)


async def test_the_same_row_twice_is_a_conflict(ledger: Ledger) -> None:
    await add_instance(ledger)
    batch = await add_batch(ledger, 3)
    with pytest.raises(ConflictError):
        await add_instance(ledger)
    with pytest.raises(ConflictError):
        await ledger.transact(lambda tx: tx.requests.add(batch.seq, lines([4, 3])))
    assert await counts(ledger, batch) == RequestCounts(total=3, waiting=3)


async def test_the_event_loop_runs_on_while_the_database_works(url: str) -> None:
    ledger = open_ledger(url)
    batch = await add_batch(ledger)
    steps = 0
    work = asyncio.create_task(
        ledger.transact(lambda tx: tx.requests.add(batch.seq, lines(range(50_000))))
    )
    while not work.done():
        await asyncio.sleep(0.001)
        steps += 1
    assert await work == 50_000
    assert steps > 10
    await ledger.close()


async def test_a_file_that_another_process_locks_is_waited_for(sqlite_url: str) -> None:
    ledger = open_ledger(sqlite_url)
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    work = asyncio.create_task(ledger.transact(lambda tx: tx.notes.put("a", {})))
    await asyncio.sleep(0.2)
    assert not work.done()
    other.execute("COMMIT")
    other.close()
    await work
    await ledger.close()


async def test_broken_connections_are_replaced(postgres: PostgresServer, postgres_url: str) -> None:
    ledger = open_ledger(postgres_url)
    await ledger.transact(lambda tx: tx.notes.put("a", {"n": 1}))
    postgres.end_sessions()
    assert await ledger.transact(lambda tx: tx.notes.get("a")) == {"n": 1}
    await ledger.close()


async def test_a_lost_server_is_one_sentence(
    postgres: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcserve.ledger.sql.ledger.OUTAGE_PAUSES_S", (0.01,))
    ledger = open_ledger(postgres_url)
    postgres.stop()
    try:
        with pytest.raises(BackendError, match="the ledger's database does not answer") as caught:
            await ledger.transact(lambda tx: tx.notes.get("a"))
        assert caught.value.retryable
        assert "\n" not in caught.value.message
    finally:
        postgres.start()
    assert await ledger.transact(lambda tx: tx.notes.get("a")) is None
    await ledger.close()


async def test_a_restart_of_the_server_is_sat_out(
    postgres: PostgresServer, postgres_url: str
) -> None:
    ledger = open_ledger(postgres_url)
    postgres.stop()
    work = asyncio.create_task(ledger.transact(lambda tx: tx.notes.put("a", {"n": 2})))
    await asyncio.sleep(0.1)
    postgres.start()
    await work
    assert await ledger.transact(lambda tx: tx.notes.get("a")) == {"n": 2}
    await ledger.close()
