"""Whatever happens in whatever order, each custom_id ends with exactly one result.

The services are the real ones, on the ledger in memory; time is the test's. Only the result files
are real files (in a temporary folder): that they hold every line once is what is shown.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from hpcserve.batching.batches import NewBatch
from hpcserve.batching.services import BatchServices, services, worker
from hpcserve.batching.worker import BatchWorker
from hpcserve.config.tree import Batching
from hpcserve.domain.batch import Batch, BatchState, RequestEvent
from hpcserve.domain.instance import Instance, InstanceEvent
from hpcserve.domain.job import EndReason
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.errors import FencedError
from hpcserve.ledger.memory.ledger import MemoryLedger
from hpcserve.ports.control import Grant, GrantedLine, Outcome
from tests.builders import NOW, an_instance

LINES = 12
SETTINGS = Batching(lease_size=5, result_page=3, validate_chunk=5, max_attempts=3)


class ManualClock:
    def __init__(self) -> None:
        self.passed = timedelta()

    def now(self) -> datetime:
        return NOW + self.passed

    def monotonic_s(self) -> float:
        return self.passed.total_seconds()

    async def sleep(self, seconds: float) -> None:
        self.passed += timedelta(seconds=seconds)


class CountingIds:
    def __init__(self) -> None:
        self.made = 0

    def new(self, prefix: str) -> str:
        self.made += 1
        return f"{prefix}-{self.made:06d}"

    def secret(self) -> str:
        return self.new("secret")


class Losses(RuleBasedStateMachine):
    grants = Bundle("grants")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.clock, self.ids, self.ledger = ManualClock(), CountingIds(), MemoryLedger()
        #: custom_id -> the answer that the control plane acknowledged
        self.taken: dict[str, str] = {}
        self.answers = 0
        self.instance: Instance | None = None
        self.served = self.new_gateway()
        self.worker = self.new_controller()

    def new_gateway(self) -> BatchServices:
        return services(
            ledger=self.ledger, clock=self.clock, ids=self.ids, settings=SETTINGS, root=self.root
        )

    def new_controller(self) -> BatchWorker:
        now = self.clock.now()
        leads = self.runner.run(
            self.ledger.transact(lambda tx: tx.leader.acquire("test", now, 10**7))
        )
        return worker(
            ledger=self.ledger,
            clock=self.clock,
            ids=self.ids,
            settings=SETTINGS,
            root=self.root,
            leadership=lambda: leads,
            models=lambda: ("m",),
            describe=lambda _: {},
            version="test",
            ended_max=50,
        )

    @initialize()
    def submit(self) -> None:
        path = self.root / "in.jsonl"
        body = {"model": "m", "prompt": "x"}
        lines = [
            {"custom_id": f"id-{i}", "method": "POST", "url": "/v1/completions", "body": body}
            for i in range(LINES)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.batch_id = self.runner.run(self._submit(str(path))).id
        self.tick()
        assert self.batch().state is BatchState.IN_PROGRESS, self.batch().errors

    async def _submit(self, path: str) -> Batch:
        file = await self.served.files.register("ada", path, expires_after_s=None)
        asked = NewBatch(
            input_file_id=file.id,
            endpoint="/v1/completions",
            completion_window="30d",
            metadata={},
            idempotency_key=None,
            is_retry=False,
        )
        return await self.served.batches.create("ada", asked)

    def batch(self) -> Batch:
        found = self.runner.run(self.ledger.transact(lambda tx: tx.batches.get(self.batch_id)))
        assert found is not None
        return found

    @rule()
    def tick(self) -> None:
        async def tick() -> None:
            await self.worker.tick()
            await self.worker.settled()

        self.runner.run(tick())

    @rule(target=grants, limit=st.integers(1, 6))
    def lease(self, limit: int) -> tuple[str, Grant | None]:
        return self._lease(limit)

    def _lease(self, limit: int) -> tuple[str, Grant | None]:
        if self.instance is None:
            instance = an_instance(self.ids.new("inst"), model="m", ends_at=None)
            born = Transition(
                subject=Subject.INSTANCE,
                subject_id=instance.id,
                at=self.clock.now(),
                event="requested",
                from_state=None,
                to_state=instance.state,
                reason="a test wants it",
            )
            self.runner.run(self.ledger.transact(lambda tx: tx.instances.add(instance, born)))
            self.instance = instance
        return self.instance.id, self.runner.run(self.served.work.lease(self.instance, limit))

    @rule(granted=grants, part=st.floats(0, 1), twice=st.booleans())
    def settle(self, granted: tuple[str, Grant | None], part: float, twice: bool) -> None:  # noqa: FBT001  # drawn
        """Hand in some results; the grant may be old, lost, or handed in before."""
        instance_id, grant = granted
        if grant is not None:
            lines = grant.lines[: round(part * len(grant.lines))]
            self._settle(instance_id, grant.lease_id, lines)
            if twice:
                self._settle(instance_id, grant.lease_id, lines)

    def _settle(self, instance_id: str, lease_id: int, lines: tuple[GrantedLine, ...]) -> None:
        outcomes = [self.outcome(line) for line in lines]
        try:
            taken = self.runner.run(self.served.work.settle(instance_id, lease_id, outcomes))
        except FencedError:
            return
        for line, outcome in zip(lines, outcomes, strict=True):
            if line.line_no in taken:
                assert line.custom_id not in self.taken, "taken twice"
                self.taken[line.custom_id] = json.loads(outcome.line)["answer"]

    def outcome(self, line: GrantedLine) -> Outcome:
        self.answers += 1
        text = {"custom_id": line.custom_id, "answer": f"{self.answers}"}
        is_rejected = self.answers % 5 == 0
        return Outcome(
            line_no=line.line_no,
            event=RequestEvent.REFUSED if is_rejected else RequestEvent.ANSWERED,
            input_tokens=1,
            cached_tokens=0,
            output_tokens=1,
            line=json.dumps(text).encode(),
        )

    @rule(granted=consumes(grants), everything=st.booleans())
    def release(self, granted: tuple[str, Grant | None], everything: bool) -> None:  # noqa: FBT001  # drawn
        instance_id, grant = granted
        if grant is not None:
            numbers = None if everything else [line.line_no for line in grant.lines[::2]]
            self.runner.run(self.served.work.release(instance_id, grant.lease_id, numbers))

    @rule(reason=st.sampled_from([EndReason.CRASHED, EndReason.PREEMPTED, EndReason.LOST]))
    def lose_the_instance(self, reason: EndReason) -> None:
        if self.instance is not None:
            ended, line = self.instance.on(
                InstanceEvent.GONE,
                at=self.clock.now(),
                reason="gone",
                end_reason=reason,
                ended_at=self.clock.now(),
            )
            self.runner.run(self.ledger.transact(lambda tx: tx.instances.save(ended, line)))
            self.instance = None

    @rule(seconds=st.sampled_from([1, 30, 61]))
    def pass_time(self, seconds: int) -> None:
        self.clock.passed += timedelta(seconds=seconds)

    @rule()
    def kill_the_gateway(self) -> None:
        self.served.close()
        self.served = self.new_gateway()

    @rule()
    def kill_the_controller(self) -> None:
        self.worker = self.new_controller()

    @invariant()
    def counts_add_up(self) -> None:
        if hasattr(self, "batch_id"):
            counts = self.batch().counts
            assert counts.total == LINES
            assert counts.completed + counts.failed >= len(self.taken)

    def teardown(self) -> None:
        try:
            if hasattr(self, "batch_id"):
                self.finish()
        finally:
            self.served.close()
            self.runner.close()
            self.folder.cleanup()

    def finish(self) -> None:
        """Work on undisturbed; then look at the files."""
        for _ in range(10 * LINES):
            self.clock.passed += timedelta(seconds=61)
            self.tick()
            if self.batch().is_terminal:
                break
            instance_id, grant = self._lease(5)
            if grant is not None:
                self._settle(instance_id, grant.lease_id, grant.lines)
        assert self.batch().state is BatchState.COMPLETED
        found: dict[str, str | None] = {}
        seen: Counter[str] = Counter()
        for kind in ("output", "errors"):
            path = self.root / "outputs" / f"{self.batch_id}.{kind}.jsonl"
            lines = path.read_text().splitlines() if path.exists() else []
            numbers = [int(json.loads(line)["custom_id"].removeprefix("id-")) for line in lines]
            assert numbers == sorted(numbers), "not in input order"
            for line in map(json.loads, lines):
                seen[line["custom_id"]] += 1
                found[line["custom_id"]] = line.get("answer")
        assert seen == Counter(f"id-{i}" for i in range(LINES))
        kept = {custom_id: found[custom_id] for custom_id in self.taken}
        assert kept == self.taken, "a committed result was lost or done again"
        unanswered = set(found) - set(self.taken)
        assert all(found[custom_id] is None for custom_id in unanswered)


TestLosses = Losses.TestCase
TestLosses.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
