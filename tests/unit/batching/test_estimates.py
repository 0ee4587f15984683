"""The estimator learns from a batch, says so, and keeps score."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from hpcserve.batching.estimates import Estimates
from hpcserve.config.tree import Batching, Scaling
from hpcserve.domain.batch import (
    Batch,
    BatchEvent,
    BatchState,
    NewRequest,
    RequestEvent,
    Result,
)
from hpcserve.domain.instance import Role
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.ledger.memory.ledger import MemoryLedger
from hpcserve.policy.scaling.target import Target
from hpcserve.ports.ledger import Leadership, Tx
from hpcserve.ports.notes import COVERAGE, ESTIMATES
from tests.builders import NOW, ago, an_instance

#: seconds that one line takes
COST_S = 2.0


class Clock:
    def __init__(self) -> None:
        self.at = NOW

    def now(self) -> datetime:
        return self.at

    def monotonic_s(self) -> float:
        return self.at.timestamp()

    async def sleep(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


class Site:
    """A ledger with an instance that works as fast as it is told, and the estimator."""

    def __init__(self) -> None:
        self.ledger, self.clock = MemoryLedger(), Clock()
        self.leads = True
        self.leader: Leadership | None = None
        self.targets = [self._target(1)]
        self.estimates = Estimates(
            ledger=self.ledger,
            clock=self.clock,
            settings=Batching(estimate_s=10.0),
            scaling=Scaling(),
            ended_max=10,
            leadership=lambda: self.leader if self.leads else None,
            targets=lambda: self.targets,
        )

    async def open(self) -> None:
        def work(tx: Tx) -> Leadership | None:
            instance = an_instance(requested_at=ago(60), ready_at=ago(20))
            tx.instances.add(instance, _line(Subject.INSTANCE, instance.id, "requested"))
            return tx.leader.acquire("test", NOW, 10**7)

        self.leader = await self.ledger.transact(work)

    @staticmethod
    def _target(count: int) -> Target:
        return Target(model="m", role=Role.BATCH, count=count, reason=f"{count} will do")

    async def submit(self, batch_id: str, lines: int) -> Batch:
        now = self.clock.now()
        batch = Batch(
            id=batch_id,
            owner="ada",
            model="m",
            endpoint="/v1/completions",
            input_file_id="f",
            completion_window="1h",
            state=BatchState.IN_PROGRESS,
            created_at=now,
            deadline_at=now + timedelta(hours=1),
        )

        def work(tx: Tx) -> Batch:
            stored = tx.batches.add(batch, _line(Subject.BATCH, batch_id, "created"))
            tx.requests.add(stored.seq, [NewRequest(n, n * 10, 9) for n in range(lines)])
            return stored

        return await self.ledger.transact(work)

    async def work_on(self, batch: Batch, *, cost_s: float = COST_S) -> None:
        """Do the whole batch, 16 lines at a time, while the estimator looks."""
        while await self.ledger.transact(lambda tx: self._lease(tx, batch)):
            await self.clock.sleep(16 * cost_s)
            await self.estimates.tick()
        await self.ledger.transact(lambda tx: self._end(tx, batch.id))
        await self.estimates.tick()

    def _lease(self, tx: Tx, batch: Batch) -> bool:
        """Settle what is leased, and lease the next lines before anybody looks."""
        now = self.clock.now()
        for lease_id in tx.requests.renew("inst-1", now, 3600):
            results = [
                Result(
                    line_no=n,
                    event=RequestEvent.ANSWERED,
                    segment=0,
                    offset=0,
                    length=1,
                    input_tokens=1,
                    cached_tokens=0,
                    output_tokens=5,
                )
                for n in self.leased
            ]
            tx.requests.settle(lease_id=lease_id, instance_id="inst-1", results=results, now=now)
        stored = tx.batches.get(batch.id)
        assert stored is not None
        lease = tx.requests.lease(batch=stored, instance_id="inst-1", limit=16, now=now, ttl_s=3600)
        self.leased = [request.line_no for request in lease.requests] if lease else []
        return lease is not None

    def _end(self, tx: Tx, batch_id: str) -> None:
        for event in (BatchEvent.SETTLED, BatchEvent.WRITTEN):
            batch = tx.batches.get(batch_id)
            assert batch is not None
            tx.batches.save(*batch.on(event, at=self.clock.now(), reason="a test"))

    async def estimate(self, batch_id: str) -> dict[str, object] | None:
        note = await self.ledger.transact(lambda tx: tx.notes.get(ESTIMATES))
        return note["batches"].get(batch_id) if note else None

    async def events(self, batch_id: str) -> list[Transition]:
        story = await self.ledger.transact(lambda tx: tx.events.story(Subject.BATCH, batch_id))
        return [line for line in story if line.event not in ("created", "settled", "written")]


def _line(subject: Subject, subject_id: str, event: str) -> Transition:
    return Transition(
        subject=subject,
        subject_id=subject_id,
        at=NOW,
        event=event,
        from_state=None,
        to_state=None,
        reason="a test",
    )


@pytest.fixture
async def site() -> Site:
    site = Site()
    await site.open()
    return site


async def test_the_story_has_what_was_said_and_how_good_it_was(site: Site) -> None:
    batch = await site.submit("b1", 320)
    await site.estimates.tick()
    await site.work_on(batch)
    said = await site.events("b1")
    assert [(line.event, line.detail.get("stage")) for line in said] == [
        ("scaled", None),
        ("estimated", "first"),
        ("estimated", "learned"),
        ("estimate_checked", None),
    ]
    assert said[0].reason == "instances wanted: 1 batch: 1 will do"
    end = site.clock.now()
    learned = said[2]
    promised = datetime.fromisoformat(str(learned.detail["p50_at"]))
    # a fifth of the work was done when it was said
    assert abs((promised - end).total_seconds()) < 0.15 * (end - learned.at).total_seconds()
    assert datetime.fromisoformat(str(learned.detail["p90_at"])) > end
    score = await site.ledger.transact(lambda tx: tx.notes.get(COVERAGE))
    assert score == {
        "first": {"batches": 1, "covered": 1},
        "learned": {"batches": 1, "covered": 1},
    }
    assert await site.estimate("b1") is None


async def test_the_next_batch_of_a_model_is_known_from_its_first_line(site: Site) -> None:
    for number in range(5):
        await site.work_on(await site.submit(f"b{number}", 320))
    await site.submit("next", 100)
    await site.estimates.tick()
    shown = await site.estimate("next")
    assert shown is not None
    seconds = (datetime.fromisoformat(str(shown["p50_at"])) - site.clock.now()).total_seconds()
    assert seconds == pytest.approx(100 * COST_S, rel=0.2)


async def test_work_that_is_due_earlier_comes_first(site: Site) -> None:
    await site.submit("early", 1000)
    await site.clock.sleep(1)
    await site.submit("late", 10)
    await site.estimates.tick()
    early, late = await site.estimate("early"), await site.estimate("late")
    assert early is not None
    assert late is not None
    assert str(late["p50_at"]) > str(early["p50_at"])
    assert "behind 1000 that are due earlier" in str(late["reason"])
    assert float(str(late["instance_hours"])) < float(str(early["instance_hours"]))


async def test_a_change_of_the_scaling_policys_mind_is_told_once(site: Site) -> None:
    await site.submit("b1", 10)
    for count in (1, 1, 2, 2):
        site.targets = [site._target(count)]
        await site.estimates.tick()
    said = [line.reason for line in await site.events("b1") if line.event == "scaled"]
    assert said == [
        "instances wanted: 1 batch: 1 will do",
        "instances wanted: 2 batch: 2 will do",
    ]


async def test_only_the_leader_estimates(site: Site) -> None:
    site.leads = False
    await site.submit("b1", 10)
    await site.estimates.tick()
    assert await site.estimate("b1") is None
    assert await site.events("b1") == []
