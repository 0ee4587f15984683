"""The gateway of a simulated site: requests arrive, are routed, and demand is reported.

Routing is the production policy over the ledger's READY instances, read as often as the gateway
reads them. A request that meets a lost engine goes to another instance, as a stream that resumes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from hpcserve.config import Gateway
from hpcserve.domain.fleet import Demand
from hpcserve.domain.instance import Instance, InstanceState
from hpcserve.domain.model import Model
from hpcserve.policy.routing.registry import policy
from hpcserve.policy.routing.seat import Ask, Seat
from hpcserve.ports.ledger import Ledger, Tx
from hpcserve.ports.notes import LISTENING
from hpcserve.sim.agent import EngineLostError, SimAgent
from hpcserve.sim.flow import Shape
from hpcserve.sim.trace import Trace
from hpcserve.sim.world import START, at

_REFRESH_S = 5.0
_REPORT_S = 5.0


@dataclass(slots=True)
class _Load:
    requests: int = 0
    tokens: int = 0


@dataclass(slots=True, kw_only=True)
class Front:
    """One gateway."""

    ledger: Ledger
    settings: Gateway
    trace: Trace
    shape: Shape
    #: by token: what answers behind an instance's address
    agents: Mapping[str, SimAgent]
    #: requests that ended, by how
    ended: dict[str, int] = field(default_factory=dict)
    _serving: dict[str, tuple[Instance, ...]] = field(default_factory=dict)
    _loads: dict[str, _Load] = field(default_factory=dict)
    _waiting: dict[str, int] = field(default_factory=dict)
    _running: dict[str, int] = field(default_factory=dict)
    _asked_s: dict[str, float] = field(default_factory=dict)
    _turn: int = 0

    async def run(self) -> None:
        """Report demand and that somebody listens, until cancelled."""
        while True:
            now_s = _now_s()
            demand = [
                Demand(
                    model=model,
                    asked_at=at(asked_s),
                    running=self._running.get(model, 0),
                    waiting=self._waiting.get(model, 0),
                )
                for model, asked_s in sorted(self._asked_s.items())
            ]
            note = {"at": at(now_s).isoformat(), "since": START.isoformat()}

            await self.ledger.transact(partial(_report, demand, note))
            await asyncio.sleep(_REPORT_S)

    async def refresh(self) -> None:
        """Read who serves, until cancelled."""
        while True:
            live = await self.ledger.transact(lambda tx: tx.instances.live())
            serving: dict[str, list[Instance]] = {}
            for instance in live:
                if instance.state is InstanceState.READY:
                    serving.setdefault(instance.model, []).append(instance)
            self._serving = {model: tuple(found) for model, found in serving.items()}
            await asyncio.sleep(_REFRESH_S)

    async def users(self, model: Model, rate: float, until_s: float, rng: random.Random) -> None:
        """Let interactive requests arrive at random until *until_s*, and wait for the last."""
        async with asyncio.TaskGroup() as requests:
            number = 0
            while _now_s() < until_s:
                await asyncio.sleep(rng.expovariate(rate))
                number += 1
                requests.create_task(self._serve(model), name=f"request {number} of {model.name}")

    async def _serve(self, model: Model) -> None:
        name = model.name
        self._asked_s[name] = _now_s()
        give_up_s = _now_s() + self.settings.queue_timeout_s
        self._waiting[name] = self._waiting.get(name, 0) + 1
        try:
            while _now_s() < give_up_s:
                instance = self._pick(model)
                if instance is not None and await self._ask(instance, name):
                    self._end("answered")
                    return
                await asyncio.sleep(_REFRESH_S)
        finally:
            self._waiting[name] -= 1
        self._end("refused")

    async def _ask(self, instance: Instance, model: str) -> bool:
        agent = self.agents.get(instance.token)
        load = self._loads.setdefault(instance.id, _Load())
        load.requests += 1
        load.tokens += int(self.shape.prompt + self.shape.output)
        self._waiting[model] -= 1
        self._running[model] = self._running.get(model, 0) + 1
        try:
            if agent is None:
                return False
            await agent.answer(self.shape)
        except EngineLostError:
            self.trace.add("replayed", instance.id)
            return False
        else:
            return True
        finally:
            load.requests -= 1
            load.tokens -= int(self.shape.prompt + self.shape.output)
            self._waiting[model] += 1
            self._running[model] -= 1

    def _pick(self, model: Model) -> Instance | None:
        """Choose among those with a free slot."""
        loads = self._loads
        free = [
            instance
            for instance in self._serving.get(model.name, ())
            if loads.setdefault(instance.id, _Load()).requests < model.max_num_seqs
        ]
        if not free:
            return None
        self._turn += 1
        seats = [Seat(instance_id=i.id, headroom_s=3600.0, slots=model.max_num_seqs) for i in free]
        ask = Ask(turn=self._turn, tokens=int(self.shape.prompt + self.shape.output))
        chosen = policy(self.settings.router)(ask, seats, [loads[i.id] for i in free])
        return free[chosen]

    def _end(self, how: str) -> None:
        self.ended[how] = self.ended.get(how, 0) + 1
        self.trace.add(how, "chat")


def _report(demand: list[Demand], note: Mapping[str, object], tx: Tx) -> None:
    tx.demand.report("gateway", demand)
    tx.notes.put(LISTENING, note)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
