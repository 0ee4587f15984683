"""A whole site in virtual time: production controllers, control service, packer and router.

Only the clock, Slurm, the engines and the files are simulated. Controllers crash and are followed
by others; words get lost; jobs vanish. After each second step the safety checkers look; when the
faults have stopped and time has passed, the liveness checker does.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from hpcserve.batching.losses import Losses
from hpcserve.batching.steps import Open, StepKind, decide
from hpcserve.config import Agent, Batching, Config
from hpcserve.config import Controller as ControllerSettings
from hpcserve.controller.act import Actor
from hpcserve.controller.loop import Controller
from hpcserve.controller.observe import Observer
from hpcserve.domain.batch import Batch, BatchEvent, BatchState, NewRequest, RequestState
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.domain.model import Model
from hpcserve.gateway.control_service import ControlService
from hpcserve.ledger import open_ledger
from hpcserve.policy.scaling.registry import SCALERS
from hpcserve.ports.ledger import Tx
from hpcserve.sim import checkers
from hpcserve.sim.agent import Setting, SimAgent
from hpcserve.sim.cluster import SimCluster
from hpcserve.sim.faults import Faults
from hpcserve.sim.flow import Shape, SimBatch
from hpcserve.sim.front import Front
from hpcserve.sim.loop import run
from hpcserve.sim.performance import PERFORMANCES
from hpcserve.sim.slurm import Changes, Job, SimPartition, SlurmModel
from hpcserve.sim.trace import Trace
from hpcserve.sim.work import SimWork
from hpcserve.sim.world import CountingIds, LoopClock

#: between two looks of the checkers, and of whoever keeps batches
_CHECK_S = 10.0
#: a controller that died is followed after so long
_SUCCESSOR_S = 5.0
#: a coarser beat than a real site's, so that a thousand sites fit into a test
_CONFIG = Config(
    controller=ControllerSettings(tick_s=15.0, tick_min_s=5.0, leader_ttl_s=60.0, silence_s=60.0),
    agent=Agent(heartbeat_s=10.0),
    batching=Batching(lease_ttl_s=90.0, lease_size=16),
)


class BrokenError(AssertionError):
    """A checker found something; the message says what, and how to see it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteScenario:
    """A small site, its users, and what goes wrong."""

    models: tuple[Model, ...]
    partitions: tuple[SimPartition, ...]
    batches: tuple[SimBatch, ...] = ()
    #: interactive requests a second, of each model
    chat_rate: float = 0.0
    shape: Shape = field(default_factory=lambda: Shape(prompt=200, output=100))
    performance: str = "llama-8b-a100"
    faults: Faults = field(default_factory=Faults)
    config: Config = _CONFIG
    policy: str = "demand"
    #: chat comes for so long; the site is watched until `until_s`
    chat_until_s: float = 1200.0
    until_s: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteOutcome:
    """What came of it."""

    digest: str
    counts: dict[str, int]
    requests: dict[str, int]
    batches: tuple[Batch, ...]


def simulate(scenario: SiteScenario, seed: int) -> SiteOutcome:
    """Run a site from its seed.

    Raises:
        BrokenError: a checker found something.
        DeadlockError: everything waits for ever.

    """
    return run(_Site(scenario, seed).run())


class _Site:
    def __init__(self, scenario: SiteScenario, seed: int) -> None:
        self._scenario = scenario
        self._seed = seed
        self._models = {model.name: model for model in scenario.models}
        self._performance = PERFORMANCES[scenario.performance]
        # one source of chance for each part, so that one part's draws do not move another's
        chance = random.Random(seed)
        self._chance = {
            part: random.Random(chance.random())
            for part in ("slurm", "cluster", "agents", "users", "controllers")
        }
        self._trace = Trace()
        self._clock = LoopClock()
        self._ids = CountingIds()
        self._ledger = open_ledger("memory:")
        self._slurm = SlurmModel(scenario.partitions, self._chance["slurm"])
        self._cluster = SimCluster(
            self._slurm, scenario.faults, self._chance["cluster"], self._changed
        )
        self._work = SimWork(
            ledger=self._ledger, clock=self._clock, settings=scenario.config.batching
        )
        self._agents: dict[str, SimAgent] = {}
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._controller: Controller | None = None
        self._service = ControlService(
            ledger=self._ledger,
            work=self._work,
            clock=self._clock,
            lease_ttl_s=scenario.config.batching.lease_ttl_s,
            wake=self._wake,
        )
        self._setting = Setting(
            config=scenario.config,
            faults=scenario.faults,
            rng=self._chance["agents"],
            trace=self._trace,
            shape=scenario.shape,
            exit=self._cluster.exit,
        )
        self._front = Front(
            ledger=self._ledger,
            settings=scenario.config.gateway,
            trace=self._trace,
            shape=scenario.shape,
            agents=self._agents,
        )

    async def run(self) -> SiteOutcome:
        scenario = self._scenario
        tasks = [
            self._spawn(self._cluster.run(), "slurm"),
            self._spawn(self._controllers(), "controllers"),
            self._spawn(self._front.run(), "gateway"),
            self._spawn(self._front.refresh(), "gateway's view"),
            self._spawn(self._submit_batches(), "batch users"),
        ]
        if scenario.chat_rate:
            tasks += [
                self._spawn(
                    self._front.users(
                        model, scenario.chat_rate, scenario.chat_until_s, self._chance["users"]
                    ),
                    f"users of {model.name}",
                )
                for model in scenario.models
            ]
        try:
            while self._now_s() < scenario.until_s:
                await asyncio.sleep(_CHECK_S)
                self._raise_failed(tasks)
                await self._keep_batches()
                await self._check()
            await self._check_liveness()
            batches = await self._ledger.transact(
                lambda tx: tx.batches.list(None, after=None, limit=1000)
            )
        finally:
            for task in (*tasks, *self._lives.values()):
                task.cancel()
            await asyncio.gather(*tasks, *self._lives.values(), return_exceptions=True)
        return SiteOutcome(
            digest=self._trace.digest(),
            counts=dict(sorted(self._trace.counts.items())),
            requests=dict(sorted(self._front.ended.items())),
            batches=batches,
        )

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return asyncio.create_task(work, name=name)

    @staticmethod
    def _raise_failed(tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def _controllers(self) -> None:
        """Run one controller after another; each may crash at any moment."""
        faults, rng = self._scenario.faults, self._chance["controllers"]
        while True:
            holder = self._ids.new("controller")
            self._controller = self._make_controller(holder)
            life = asyncio.create_task(self._controller.run(), name=holder)
            try:
                while not life.done():
                    await asyncio.sleep(_CHECK_S + rng.random())
                    chance = faults.controller_crashes_per_hour * _CHECK_S / 3600
                    if self._now_s() < faults.until_s and rng.random() < chance:
                        break
                if life.done():
                    life.result()
            finally:
                life.cancel()
                await asyncio.gather(life, return_exceptions=True)
            self._trace.add("crash", holder)
            await asyncio.sleep(_SUCCESSOR_S)

    def _make_controller(self, holder: str) -> Controller:
        config = self._scenario.config
        return Controller(
            holder=holder,
            ledger=self._ledger,
            observer=Observer(
                ledger=self._ledger,
                cluster=self._cluster,
                clock=self._clock,
                config=config,
                catalog=lambda: self._models,
            ),
            actor=Actor(
                ledger=self._ledger,
                cluster=self._cluster,
                clock=self._clock,
                ids=self._ids,
                config=config,
                state_dir=Path("/simulated"),
                secret=b"simulated",
            ),
            scaler=SCALERS[self._scenario.policy](config.scaling),
            clock=self._clock,
            config=config,
            cluster_description=self._cluster.description,
        )

    def _wake(self) -> None:
        if self._controller is not None:
            self._controller.wake()

    def _changed(self, changes: Changes) -> None:
        """Let agents live and die with their jobs."""
        for job in changes.started:
            self._trace.add("started", job.token, job.partition.name)
            self._begin(job)
        for job in changes.warned:
            self._trace.add("warned", job.token)
            if job.token in self._agents:
                self._agents[job.token].warn()
        for job in changes.ended:
            self._trace.add("ended", job.token, str(job.end_reason))
            agent = self._agents.pop(job.token, None)
            if agent is not None:
                agent.stop()
            life = self._lives.pop(job.token, None)
            if life is not None and life is not asyncio.current_task():
                life.cancel()

    def _begin(self, job: Job) -> None:
        agent = SimAgent(
            job,
            self._models[self._cluster.model_of[job.token]],
            self._performance,
            self._service.of(job.token, job.id),
            self._setting,
        )
        self._agents[job.token] = agent
        self._lives[job.token] = self._spawn(agent.run(), f"agent {job.token}")

    async def _submit_batches(self) -> None:
        for number, batch in enumerate(sorted(self._scenario.batches, key=lambda b: b.at_s)):
            await asyncio.sleep(max(0.0, batch.at_s - self._now_s()))
            await self._ledger.transact(partial(self._add_batch, batch, number))

    def _add_batch(self, batch: SimBatch, number: int, tx: Tx) -> None:
        now = self._clock.now()
        row = Batch(
            id=f"batch-{number}",
            owner=f"user-{number % 3}",
            model=self._scenario.models[number % len(self._scenario.models)].name,
            endpoint="/v1/chat/completions",
            input_file_id="none",
            completion_window=f"{batch.within_s / 3600:.0f}h",
            state=BatchState.IN_PROGRESS,
            created_at=now,
            deadline_at=now + timedelta(seconds=batch.within_s),
        )
        line = Transition(
            subject=Subject.BATCH,
            subject_id=row.id,
            at=now,
            event="created",
            from_state=None,
            to_state=row.state,
            reason="a user of the simulation wants it",
        )
        stored = tx.batches.add(row, line)
        tx.requests.add(
            stored.seq,
            (NewRequest(line_no=n, offset=0, length=2) for n in range(1, batch.requests + 1)),
        )

    async def _keep_batches(self) -> None:
        """Do what the batch worker does, without files."""
        losses = Losses(
            ledger=self._ledger,
            clock=self._clock,
            settings=self._scenario.config.batching,
            ended_max=self._scenario.config.controller.ended_shown,
        )
        await losses.recover(lambda _tx: None)
        await self._ledger.transact(self._close_batches)

    def _close_batches(self, tx: Tx) -> None:
        now = self._clock.now()
        for step in decide(Open(batches=tx.batches.open(), busy=frozenset()), now):
            batch = tx.batches.get(step.batch_id)
            assert batch is not None
            event = BatchEvent.SETTLED
            match step.kind:
                case StepKind.CLOSE_WINDOW:
                    event = BatchEvent.WINDOW_CLOSED
                    tx.requests.close(batch.seq, RequestState.EXPIRED)
                case StepKind.FINALISE:
                    late = batch.counts.expired > 0
                    event = BatchEvent.WRITTEN_LATE if late else BatchEvent.WRITTEN
                case _:
                    pass
            tx.batches.save(*batch.on(event, at=now, reason=step.reason))
            self._trace.add(event, batch.id)

    async def _check(self) -> None:
        scenario = self._scenario
        found = await self._ledger.transact(
            lambda tx: checkers.safety(
                tx,
                slurm=self._slurm,
                work=self._work,
                models=self._models,
                config=scenario.config,
                now_s=self._now_s(),
            )
        )
        self._raise(found)

    async def _check_liveness(self) -> None:
        found = await self._ledger.transact(
            lambda tx: checkers.liveness(tx, self._slurm, self._now_s())
        )
        self._raise(found)

    def _raise(self, found: tuple[str, ...]) -> None:
        if found:
            raise BrokenError(
                f"seed {self._seed}, second {self._now_s():.0f}: {'; '.join(found)}\n"
                f"{self._trace.tail()}"
            )

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()
