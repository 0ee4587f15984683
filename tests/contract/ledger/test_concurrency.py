"""Many at once, and killed in the middle: no line twice, nothing committed lost."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpcserve.domain.batch import RequestCounts, RequestState
from hpcserve.errors import FencedError
from hpcserve.ledger import open_ledger
from hpcserve.ledger.upgrade import upgrade
from hpcserve.ports.ledger import Ledger, Tx
from tests.builders import NOW, ahead
from tests.contract.ledger.postgres_server import running_server
from tests.contract.ledger.work import (
    TTL_S,
    add_batch,
    answer,
    counts,
    ended_lines,
    lease,
    line_nos,
    must_lease,
    settle,
)

WRITER = Path(__file__).with_name("writer.py")


@contextmanager
def writer(url: str, instance_id: str, limit: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(WRITER), url, instance_id, str(limit)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


async def test_tasks_never_lease_a_line_twice(ledger: Ledger) -> None:
    batch = await add_batch(ledger, 2_000)

    async def work(instance_id: str) -> list[int]:
        done: list[int] = []
        while held := await lease(ledger, batch, 17, instance_id=instance_id):
            taken = await settle(ledger, held, *(answer(n) for n in line_nos(held)))
            assert taken == set(line_nos(held))
            done += taken
        return done

    done = await asyncio.gather(*(work(f"inst-{n}") for n in range(8)))
    assert sorted(n for part in done for n in part) == list(range(1, 2_001))
    assert await counts(ledger, batch) == RequestCounts(total=2_000, completed=2_000)


async def test_leases_lapses_releases_and_closes_at_once_stay_exact(ledger: Ledger) -> None:
    batch = await add_batch(ledger, 1_500)
    taken: Counter[int] = Counter()

    async def work(instance_id: str, turn: int) -> None:
        for step in range(turn, turn + 40):
            held = await lease(ledger, batch, 13, instance_id=instance_id)
            if held is None:
                return
            try:
                if step % 4 == 0:
                    await ledger.transact(
                        lambda tx, held=held: tx.requests.release(
                            lease_id=held.id, instance_id=instance_id, line_nos=None
                        )
                    )
                taken.update(await settle(ledger, held, *(answer(n) for n in line_nos(held))))
            except FencedError:
                continue

    async def disturb() -> None:
        for step in range(20):
            await ledger.transact(
                lambda tx, step=step: tx.requests.lapse(NOW, instance_ids=[f"inst-{step % 6}"])
            )
            await ledger.transact(
                lambda tx, step=step: tx.requests.close(
                    batch.seq, RequestState.FAILED, line_nos=[step * 7, step * 31]
                )
            )
            await asyncio.sleep(0.005)

    await asyncio.gather(disturb(), *(work(f"inst-{n}", n) for n in range(6)))
    await ledger.transact(lambda tx: tx.requests.close(batch.seq, RequestState.CANCELLED))
    ended = {
        state: await ended_lines(ledger, batch, state)
        for state in (RequestState.COMPLETED, RequestState.FAILED, RequestState.CANCELLED)
    }
    assert sorted(taken) == ended[RequestState.COMPLETED]
    assert set(taken.values()) == {1}
    assert await counts(ledger, batch) == RequestCounts(
        total=1_500,
        completed=len(ended[RequestState.COMPLETED]),
        failed=len(ended[RequestState.FAILED]),
        cancelled=len(ended[RequestState.CANCELLED]),
    )


async def test_processes_never_settle_a_line_twice(url: str) -> None:
    ledger = open_ledger(url)
    batch = await add_batch(ledger, 3_000)
    with writer(url, "inst-1", 50) as one, writer(url, "inst-2", 50) as two:
        done = [
            n
            for process in (one, two)
            for line in (await asyncio.to_thread(process.communicate, timeout=50))[0].splitlines()
            for n in json.loads(line)
        ]
    assert sorted(done) == list(range(1, 3_001))
    assert await counts(ledger, batch) == RequestCounts(total=3_000, completed=3_000)
    await ledger.close()


async def test_a_killed_writer_loses_nothing_that_it_committed(url: str) -> None:
    ledger = open_ledger(url)
    batch = await add_batch(ledger, 20_000)
    said: set[int] = set()
    for turn in range(3):
        with writer(url, f"inst-{turn}", 20) as process:
            assert process.stdout is not None
            for _ in range(5 + turn):
                said.update(json.loads(await asyncio.to_thread(process.stdout.readline)))
            process.send_signal(signal.SIGKILL)
            rest = await asyncio.to_thread(process.stdout.read)
            said.update(n for line in rest.splitlines() for n in json.loads(line))
        before = await counts(ledger, batch)
        # it may have committed one lease's results without a chance to say so
        completed = await ended_lines(ledger, batch, RequestState.COMPLETED)
        assert said <= set(completed)
        assert len(completed) == before.completed
        await ledger.transact(lambda tx, turn=turn: tx.requests.lapse(ahead(TTL_S)))
        after = await counts(ledger, batch)
        assert after == RequestCounts(
            total=20_000, waiting=20_000 - before.completed, completed=before.completed
        )
    await ledger.close()


async def test_a_crashed_server_loses_nothing_that_it_committed() -> None:
    with running_server() as server:
        url = server.database("crash")
        upgrade(url)
        ledger = open_ledger(url)
        batch = await add_batch(ledger, 1_000)
        with writer(url, "inst-1", 10) as process:
            assert process.stdout is not None
            said = {
                n
                for _ in range(20)
                for n in json.loads(await asyncio.to_thread(process.stdout.readline))
            }
            server.stop(signal.SIGQUIT)
            process.kill()
        server.start()
        assert said <= set(await ended_lines(ledger, batch, RequestState.COMPLETED))
        stored = await counts(ledger, batch)
        assert stored.waiting + stored.leased + stored.completed == 1_000
        await ledger.close()


async def test_a_leader_that_was_checked_leads_until_its_commit(url: str) -> None:
    ledger, rival = open_ledger(url), open_ledger(url)
    led = await ledger.transact(lambda tx: tx.leader.acquire("c1", NOW, 10))
    assert led is not None
    order: list[str] = []

    async def take_over() -> None:
        await asyncio.sleep(0.1)
        won = await rival.transact(lambda tx: tx.leader.acquire("c2", ahead(11), 10))
        assert won is not None
        order.append("rival won")

    def act(tx: Tx) -> None:
        tx.leader.check(led, NOW)
        # longer than the rival waits before it tries
        time.sleep(0.5)
        tx.notes.put("act", {"by": "c1"})
        order.append("c1 acted")

    await asyncio.gather(ledger.transact(act), take_over())
    assert order == ["c1 acted", "rival won"]
    await ledger.close()
    await rival.close()


@pytest.mark.parametrize("state", [RequestState.CANCELLED, RequestState.EXPIRED])
async def test_closing_a_batch_beside_its_workers_is_exact(url: str, state: RequestState) -> None:
    ledger = open_ledger(url)
    batch = await add_batch(ledger, 5_000)
    await must_lease(ledger, batch, 100, instance_id="inst-idle")
    with writer(url, "inst-1", 20) as process:
        assert process.stdout is not None
        said = set(json.loads(await asyncio.to_thread(process.stdout.readline)))
        await ledger.transact(lambda tx: tx.requests.close(batch.seq, state))
        rest, _ = await asyncio.to_thread(process.communicate, timeout=50)
        said.update(n for line in rest.splitlines() for n in json.loads(line))
    completed = await ended_lines(ledger, batch, RequestState.COMPLETED)
    assert set(completed) == said
    stored = await counts(ledger, batch)
    assert stored.completed == len(said)
    assert stored.completed + stored.cancelled + stored.expired == 5_000
    await ledger.close()
