"""An agent and its engine in a simulated job; it talks to the production control service.

It registers, loads, beats, pulls leases, answers, drains when it is told or warned, and dies with
its job without a word. Single requests take prefill and decoding time at the load they meet.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from hpcserve.config import Config
from hpcserve.domain.batch import RequestEvent
from hpcserve.domain.job import EndReason
from hpcserve.domain.load import EngineLoad, GpusAbsent
from hpcserve.domain.model import Model
from hpcserve.errors import FencedError
from hpcserve.gateway.control_service import InstanceControl
from hpcserve.ports.control import Ending, Grant, Heartbeat, Order, Outcome, Registration
from hpcserve.sim.faults import Faults
from hpcserve.sim.flow import Shape
from hpcserve.sim.performance import Performance
from hpcserve.sim.slurm import Job
from hpcserve.sim.trace import Trace
from hpcserve.sim.world import at

_HELLO_S = 2.0
#: times that results are handed in when words get lost
_TRIES = 20
_NO_GPUS = GpusAbsent(reason="simulated")


class EngineLostError(Exception):
    """The engine went away under a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all agents of a site share."""

    config: Config
    faults: Faults
    rng: random.Random
    trace: Trace
    shape: Shape
    #: ends a job whose program ends: the job, and why (None is exit 0)
    exit: Callable[[Job, EndReason | None], None]


class SimAgent:
    """One agent; `run` is its life."""

    def __init__(
        self,
        job: Job,
        model: Model,
        performance: Performance,
        control: InstanceControl,
        setting: Setting,
    ) -> None:
        """Take the job it runs in."""
        self.job = job
        self.model = model
        self._performance = performance
        self._control = control
        self._setting = setting
        self._ready = False
        self._draining = False
        self._warned = False
        self._leases: dict[int, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._finished = 0
        #: requests in the engine
        self.running = 0

    async def run(self) -> None:
        """Live until told to exit, or until the job is gone and this is cancelled."""
        setting = self._setting
        rng, faults = setting.rng, setting.faults
        trouble = _now_s() < faults.until_s
        if trouble and rng.random() < faults.mute_ratio:
            setting.trace.add("mute", self.job.token)
            return
        await asyncio.sleep(_HELLO_S)
        load_s = rng.uniform(*self._performance.load_s)
        if trouble and rng.random() < faults.slow_load_ratio:
            load_s *= faults.slow_load_factor
        loaded_s = _now_s() + load_s
        said_hello = False
        while True:
            if not said_hello:
                said_hello = await self._hello()
            else:
                self._ready = _now_s() >= loaded_s
                order = await self._draining_said() if self._warned else await self._beat()
                if order is Order.EXIT or (order is Order.DRAIN and not self.running):
                    await self._leave()
                    return
                self._draining = self._draining or order is Order.DRAIN
                if self._ready and not self._draining:
                    await self._pull()
                if self._crashes():
                    await self._crash()
                    return
            await asyncio.sleep(setting.config.agent.heartbeat_s)

    def warn(self) -> None:
        """Take the scheduler's signal: no new work from now on."""
        self._warned = self._draining = True

    def stop(self) -> None:
        """Die with the job: nothing in flight ends."""
        for task in list(self._tasks):
            task.cancel()

    async def answer(self, shape: Shape) -> None:
        """Serve one request.

        Raises:
            EngineLostError: the engine is not there, or goes away meanwhile.

        """
        if not self._ready or self.job.end_reason is not None:
            raise EngineLostError
        self.running += 1
        try:
            performance = self._performance
            held = self.running * shape.held
            await asyncio.sleep(
                performance.prefill_s(shape.prompt)
                + shape.output * performance.itl_s(self.running, held)
            )
        finally:
            self.running -= 1
        if self.job.ends_s <= _now_s():
            raise EngineLostError
        self._finished += 1

    async def _hello(self) -> bool:
        if self._lost():
            return False
        order = await self._control.register(
            Registration(
                job_id=self.job.id,
                node="node",
                host="node",
                port=9000,
                log_path="",
                ends_at=at(self.job.ends_s),
            )
        )
        return order is not Order.EXIT

    async def _beat(self) -> Order:
        if self._lost():
            return Order.CONTINUE
        return await self._control.beat(
            Heartbeat(
                healthy=self._ready,
                load=self._load(),
                gpus=_NO_GPUS,
                batch_running=sum(self._leases.values()),
                draining=self._draining,
                stage="ready" if self._ready else "loading weights",
            )
        )

    async def _draining_said(self) -> Order:
        if self._lost():
            return Order.DRAIN
        self._warned = False
        return await self._control.draining(
            Ending(reason=EndReason.PREEMPTED, message="Slurm preempts the job")
        )

    async def _pull(self) -> None:
        room = self.model.max_num_seqs - self.running
        if room <= 0 or self._lost():
            return
        grant = await self._control.lease(room, list(self._leases))
        if grant is None:
            return
        self._setting.trace.add("leased", self.job.token, f"{grant.lease_id} {len(grant.lines)}")
        self._leases[grant.lease_id] = len(grant.lines)
        task = asyncio.create_task(self._work(grant), name=f"lease {grant.lease_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, grant: Grant) -> None:
        """Answer all lines of a lease together, then hand the results in."""
        lines = len(grant.lines)
        self.running += lines - 1
        try:
            await self.answer(self._setting.shape)
        except EngineLostError:
            return
        finally:
            self.running -= lines - 1
        outcomes = [
            Outcome(
                line_no=line.line_no,
                event=RequestEvent.ANSWERED,
                input_tokens=1,
                cached_tokens=0,
                output_tokens=1,
                line=b"{}",
            )
            for line in grant.lines
        ]
        for _ in range(_TRIES):
            if not self._lost():
                break
            await asyncio.sleep(1.0)
        try:
            taken = await self._control.settle(grant.lease_id, outcomes)
            self._setting.trace.add("settled", self.job.token, f"{grant.lease_id} {len(taken)}")
        except FencedError:
            self._setting.trace.add("fenced", self.job.token, str(grant.lease_id))
        self._leases.pop(grant.lease_id, None)

    async def _leave(self) -> None:
        if not self._lost():
            await self._control.ended(Ending(reason=EndReason.DRAINED, message="drained"))
        self._setting.exit(self.job, None)

    async def _crash(self) -> None:
        self._setting.trace.add("crash", self.job.token)
        if not self._lost():
            await self._control.ended(Ending(reason=EndReason.CRASHED, message="CUDA error"))
        self._setting.exit(self.job, EndReason.CRASHED)

    def _crashes(self) -> bool:
        setting = self._setting
        chance = setting.faults.engine_crashes_per_hour * setting.config.agent.heartbeat_s / 3600
        return self._ready and _now_s() < setting.faults.until_s and setting.rng.random() < chance

    def _lost(self) -> bool:
        """Whether a word does not arrive."""
        setting = self._setting
        return (
            _now_s() < setting.faults.until_s
            and setting.rng.random() < setting.faults.word_loss_ratio
        )

    def _load(self) -> EngineLoad:
        return EngineLoad(
            at=at(_now_s()),
            running=self.running,
            waiting=0,
            kv_cache_used_ratio=0.0,
            prompt_tokens_total=0,
            generation_tokens_total=0,
            requests_total=self._finished,
            preemptions_total=0,
            ttft_sum_s=0.0,
            ttft_count=0,
            itl_sum_s=0.0,
            itl_count=0,
            prefix_cache_query_tokens_total=0,
            prefix_cache_hit_tokens_total=0,
        )


def _now_s() -> float:
    return asyncio.get_running_loop().time()
