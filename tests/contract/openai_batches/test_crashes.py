"""The controller dies after any of its transactions; the next one ends every batch all the same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest

from hpcserve.batching.batches import NewBatch
from hpcserve.batching.services import services, worker
from hpcserve.batching.worker import BatchWorker
from hpcserve.config.tree import Batching
from hpcserve.domain.batch import BatchState
from hpcserve.ledger import open_ledger
from hpcserve.ledger.upgrade import upgrade
from hpcserve.ports.ledger import Leadership, Ledger, Tx
from hpcserve.wiring.system import SystemIds
from tests.builders import an_instance
from tests.contract.openai_batches.site import MODEL, ShiftedClock, echo, jsonl

T = TypeVar("T")
LINES = 11
SETTINGS = Batching(validate_chunk=3, result_page=4, retry_pause_s=0)


class Death(BaseException):
    """The process is gone."""


class MortalLedger:
    """Passes on so many transactions, then the process dies right after one has committed."""

    def __init__(self, ledger: Ledger, lives: int) -> None:
        self.ledger = ledger
        self.lives = lives

    async def transact(self, work: Callable[[Tx], T]) -> T:
        answer = await self.ledger.transact(work)
        self.lives -= 1
        if self.lives < 0:
            raise Death
        return answer

    async def close(self) -> None:
        await self.ledger.close()


@pytest.fixture(params=["memory", "sqlite"])
async def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ledger]:
    url = "memory:"
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
        await asyncio.to_thread(upgrade, url)
    ledger = open_ledger(url)
    yield ledger
    await ledger.close()


def controller(ledger: Ledger, root: Path, leads: Leadership) -> BatchWorker:
    return worker(
        ledger=ledger,
        clock=ShiftedClock(),
        ids=SystemIds(),
        settings=SETTINGS,
        root=root,
        leadership=lambda: leads,
        models=lambda: (MODEL,),
        describe=lambda _: {},
        version="test",
        ended_max=10,
    )


async def until_death(worker: BatchWorker) -> bool:
    """Tick until nothing is left to do; return whether the process died on the way."""
    for _ in range(4):
        try:
            await worker.tick()
            await worker.settled()
        except Death:
            with suppress(Death):
                await worker.stop()
            return True
    return False


@pytest.mark.parametrize("fails", [False, True])
async def test_death_after_any_transaction(ledger: Ledger, tmp_path: Path, *, fails: bool) -> None:
    clock, root = ShiftedClock(), tmp_path / "batches"
    leads = await ledger.transact(lambda tx: tx.leader.acquire("c", clock.now(), 10**6))
    assert leads is not None
    served = services(ledger=ledger, clock=clock, ids=SystemIds(), settings=SETTINGS, root=root)
    source = tmp_path / "in.jsonl"
    source.write_bytes(jsonl(LINES) + (b"{\n" if fails else b""))
    file = await served.files.register("ada", str(source), expires_after_s=None)
    lives = 0
    died = True
    while died:
        asked = NewBatch(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={},
            idempotency_key=None,
            is_retry=False,
        )
        batch = await served.batches.create("ada", asked)
        died = await until_death(controller(MortalLedger(ledger, lives), root, leads))
        await until_death(controller(ledger, root, leads))
        instance = an_instance(model=MODEL, ends_at=None)
        while (grant := await served.work.lease(instance, 5)) is not None:
            outcomes = [echo(grant, line) for line in grant.lines]
            await served.work.settle("inst-1", grant.lease_id, outcomes)
        died |= await until_death(controller(MortalLedger(ledger, lives), root, leads))
        await until_death(controller(ledger, root, leads))
        done = await served.batches.get("ada", batch.id)
        if fails:
            assert done.state is BatchState.FAILED
            assert done.counts.total == 0
        else:
            assert done.state is BatchState.COMPLETED, lives
            output = (root / "outputs" / f"{batch.id}.output.jsonl").read_bytes()
            ids = [json.loads(line)["custom_id"] for line in output.splitlines()]
            assert ids == [f"id-{i}" for i in range(LINES)]
        lives += 1
    assert lives > 8, "every step of the worker was cut once"
    page = await served.files.list(
        "ada", purpose="batch_output", limit=100, after=None, ascending=True
    )
    assert len(page.data) == (0 if fails else lives)
    assert not list(root.glob("*/*.tmp"))
    served.close()
