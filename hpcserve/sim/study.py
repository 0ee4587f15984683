"""Runs one scaling policy over a workload and a cluster, as flows: the same `decide` as production.

Time goes in steps of `step_s`; each `tick_s` the production decision (transcribe, scale, reconcile)
sees a Fleet and its plan is carried out. Slurm, loads and node failures are drawn from the seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from hpcserve.config import Config
from hpcserve.domain.batch import Backlog
from hpcserve.domain.fleet import Demand
from hpcserve.domain.instance import Instance, InstanceEvent, InstanceState, Role
from hpcserve.domain.job import EndReason
from hpcserve.domain.load import EngineLoad
from hpcserve.policy.decide import decide
from hpcserve.policy.packing.registry import PACKERS
from hpcserve.policy.packing.view import Ask, PackingSettings, PackingView, Pick
from hpcserve.policy.scaling.registry import SCALERS
from hpcserve.policy.scaling.target import Scaler
from hpcserve.sim.book import Book
from hpcserve.sim.flow import Flow, OpenBatch, SimModel
from hpcserve.sim.outcome import Outcome, Sample
from hpcserve.sim.slurm import SimPartition, SlurmModel
from hpcserve.sim.world import at

#: an agent says hello so long after its job began
_HELLO_S = 10.0
#: points of a plot
_SAMPLES = 720


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A workload on a cluster."""

    name: str
    models: tuple[SimModel, ...]
    #: the first one is for chat
    partitions: tuple[SimPartition, ...]
    duration_s: float
    step_s: float = 1.0
    tick_s: float = 10.0
    config: Config = field(default_factory=Config)
    node_failures_per_hour: float = 0.0


@dataclass(slots=True)
class _Engine:
    """What an instance's engine will do next."""

    loaded_s: float
    #: draining ends then
    drained_s: float | None = None


class Study:
    """One run."""

    def __init__(
        self, scenario: Scenario, policy: str, seed: int, *, scaler: Scaler | None = None
    ) -> None:
        """Take a policy's name, or a scaler of one's own under that name."""
        self._scenario = scenario
        self._policy = policy
        self._seed = seed
        self._rng = random.Random(seed)
        config = scenario.config
        self._scaler = scaler or SCALERS[policy](config.scaling)
        self._slurm = SlurmModel(scenario.partitions, self._rng)
        self._book = Book(config, self._slurm, {m.model.name: m.model for m in scenario.models})
        # the local limit is hpcserve's and Chiron's; the other baselines run static batch sizes
        has_limit = policy in ("backpressure", "chiron", "demand")
        self._flows = {
            m.model.name: Flow(m, scenario.step_s, config.gateway.queue_timeout_s, has_limit)
            for m in scenario.models
        }
        self._coming = {
            m.model.name: sorted(m.batches, key=lambda b: -b.at_s) for m in scenario.models
        }
        self._engines: dict[str, _Engine] = {}
        self._batches = 0
        self._asked_s: dict[str, float] = {}
        self._done = Outcome(scenario=scenario.name, policy=policy, seed=seed)
        #: READY instances by model: for chat, for batch only
        self._ready: dict[str, tuple[int, int]] = {}

    def run(self) -> Outcome:
        """Return what came of it."""
        scenario = self._scenario
        steps = int(scenario.duration_s / scenario.step_s)
        per_tick = max(1, round(scenario.tick_s / scenario.step_s))
        per_sample = max(per_tick, steps // _SAMPLES // per_tick * per_tick)
        for step in range(steps):
            now_s = step * scenario.step_s
            if step % per_tick == 0:
                self._tick(now_s)
                if step % per_sample == 0:
                    self._sample(now_s)
            self._step(step, now_s)
        return self._finish()

    def _step(self, step: int, now_s: float) -> None:
        scenario = self._scenario
        for name, flow in self._flows.items():
            arrivals = flow.of.arrivals
            count = arrivals[step] if step < len(arrivals) else 0
            if count:
                self._asked_s[name] = now_s
            flow.arrive(now_s, count)
            coming = self._coming[name]
            while coming and coming[-1].at_s <= now_s:
                batch = coming.pop()
                self._batches += 1
                flow.batches.append(
                    OpenBatch(f"batch-{self._batches}", batch, float(batch.requests))
                )
            flow.step(now_s, *self._ready.get(name, (0, 0)))
        hours = scenario.step_s / 3600
        for name, held in self._slurm.held.items():
            self._done.gpu_hours[name] = self._done.gpu_hours.get(name, 0.0) + held * hours

    def _tick(self, now_s: float) -> None:
        self._world(now_s)
        self._read_ready(now_s)
        demand = {
            name: Demand(
                model=name,
                asked_at=at(self._asked_s.get(name, 0.0)),
                running=round(flow.chat),
                waiting=round(flow.queued + flow.replayed),
            )
            for name, flow in self._flows.items()
            if name in self._asked_s
        }
        fleet = self._book.fleet(now_s, demand, self._backlog(now_s))
        plan = decide(fleet, self._scaler, self._scenario.config, at(now_s))
        for job in self._book.act(plan, now_s):
            self._engines.pop(job.token, None)
        self._read_ready(now_s)

    def _world(self, now_s: float) -> None:
        """Let Slurm and the agents do what is due."""
        changes = self._slurm.advance(now_s)
        for job in changes.started:
            performance = self._flows[self._book.live[job.token].model].of.performance
            load_s = self._rng.uniform(*performance.load_s)
            self._engines[job.token] = _Engine(now_s + _HELLO_S + load_s)
        for job in changes.warned:
            self._book.say(
                job.token,
                InstanceEvent.DRAIN
                if self._book.live[job.token].state in (InstanceState.LOADING, InstanceState.READY)
                else InstanceEvent.STOP,
                at(now_s),
                ending=EndReason.PREEMPTED,
            )
        for job in changes.ended:
            self._engines.pop(job.token, None)
        self._fail_nodes(now_s)
        for token, engine in list(self._engines.items()):
            self._agent(token, engine, now_s)

    def _agent(self, token: str, engine: _Engine, now_s: float) -> None:
        instance = self._book.live.get(token)
        if instance is None or instance.state is InstanceState.STOPPING:
            return
        if instance.state is InstanceState.ALLOCATED:
            self._book.say(token, InstanceEvent.REGISTERED, at(now_s), host="node", port=1)
        elif instance.state is InstanceState.LOADING and now_s >= engine.loaded_s:
            self._book.say(token, InstanceEvent.HEALTHY, at(now_s), ready_at=at(now_s))
        elif instance.state is InstanceState.DRAINING:
            drain_s = self._scenario.config.agent.drain_s
            if engine.drained_s is None:
                engine.drained_s = now_s + drain_s / 3
            if now_s >= engine.drained_s:
                self._book.say(token, InstanceEvent.DRAINED, at(now_s))
                job = self._slurm.get(instance.job_id or "")
                if job is not None:
                    self._slurm.end(job, now_s, None)
                del self._engines[token]

    def _fail_nodes(self, now_s: float) -> None:
        rate = self._scenario.node_failures_per_hour * self._scenario.tick_s / 3600
        if not rate:
            return
        for token in list(self._engines):
            if self._rng.random() < rate:
                job = self._slurm.get(self._book.live[token].job_id or "")
                if job is not None:
                    self._slurm.end(job, now_s, EndReason.NODE_FAILED)
                del self._engines[token]

    def _read_ready(self, now_s: float) -> None:
        """Count who serves, and let instances say how busy they are."""
        ready: dict[str, tuple[int, int]] = {}
        loads: dict[tuple[str, bool], EngineLoad] = {}
        for instance in list(self._book.live.values()):
            if instance.state is not InstanceState.READY or instance.id not in self._engines:
                continue
            mixed, batch_only = ready.get(instance.model, (0, 0))
            only = instance.role is Role.BATCH
            ready[instance.model] = (mixed + (not only), batch_only + only)
        for name, flow in self._flows.items():
            before = self._ready.get(name, (0, 0))[0]
            here = ready.get(name, (0, 0))
            if here[0] < before:
                flow.lose(before - here[0], before)
            for only in (False, True):
                loads[name, only] = _load(flow, here, now_s, only=only)
        self._ready = ready
        for instance in list(self._book.live.values()):
            if instance.state is InstanceState.READY:
                load = loads[instance.model, instance.role is Role.BATCH]
                self._refresh(instance, load, now_s)

    def _refresh(self, instance: Instance, load: EngineLoad, now_s: float) -> None:
        if instance.load is not None and instance.load.at == load.at:
            return
        busy_at = at(now_s) if load.running else instance.busy_at
        self._book.live[instance.id] = replace(instance, load=load, busy_at=busy_at)

    def _backlog(self, now_s: float) -> tuple[Backlog, ...]:
        """Return the open work, and put each model's batches into the packer's order."""
        rows: list[Backlog] = []
        for name, flow in self._flows.items():
            mixed, only = self._ready.get(name, (0, 0))
            in_flight = mixed * flow.batch_mixed + only * flow.batch_only
            mine = []
            for batch in flow.batches:
                leased = min(batch.left, in_flight)
                in_flight -= leased
                mine.append(
                    Backlog(
                        batch_id=batch.id,
                        batch_seq=int(batch.id.rpartition("-")[2]),
                        owner="user",
                        model=name,
                        deadline_at=at(batch.deadline_s),
                        created_at=at(batch.batch.at_s),
                        waiting=round(batch.left - leased),
                        leased=round(leased),
                    )
                )
            if len(mine) > 1:
                flow.batches = _packed(name, flow.batches, tuple(mine), self._scenario, now_s)
            rows.extend(row for row in mine if row.waiting or row.leased)
        return tuple(sorted(rows, key=lambda row: (row.deadline_at, row.batch_seq)))

    def _sample(self, now_s: float) -> None:
        states = [i.state for i in self._book.live.values()]
        mixed = sum(m for m, _ in self._ready.values())
        only = sum(b for _, b in self._ready.values())
        flows = self._flows.values()
        self._done.samples.append(
            Sample(
                at_s=now_s,
                mixed=mixed,
                batch=only,
                starting=sum(s in (InstanceState.ALLOCATED, InstanceState.LOADING) for s in states),
                queued=sum(s is InstanceState.QUEUED for s in states),
                gpus=sum(self._slurm.held.values()),
                chat=sum(f.chat for f in flows),
                waiting=sum(f.queued for f in flows),
                backlog=sum(b.left for f in flows for b in f.batches),
                chat_total=sum(f.served.chat for f in flows),
                ttft_kept=sum(f.served.ttft_kept for f in flows),
                actions=sum(self._book.counts[a] for a in ("submit", "drain", "stop")),
            )
        )

    def _finish(self) -> Outcome:
        done = self._done
        for flow in self._flows.values():
            done.add(flow, self._scenario.duration_s)
        done.counts = dict(sorted(self._book.counts.items()))
        done.notes = self._book.notes
        done.paid_partition = self._scenario.partitions[0].name
        return done


def _load(flow: Flow, ready: tuple[int, int], now_s: float, *, only: bool) -> EngineLoad:
    mixed, batch_only = ready
    running = flow.batch_only if only else flow.batch_mixed + flow.chat / max(1, mixed)
    each = max(1, mixed + batch_only)
    return EngineLoad(
        at=at(now_s),
        running=round(running),
        waiting=0,
        kv_cache_used_ratio=flow.kv_used_ratio(mixed, batch_only=only),
        prompt_tokens_total=0,
        generation_tokens_total=int(flow.served.output_tokens / each),
        requests_total=int(flow.requests_total / each),
        preemptions_total=0,
        ttft_sum_s=0.0,
        ttft_count=0,
        # the pool's: only the mean between two readings is used
        itl_sum_s=flow.itl_sum_s,
        itl_count=int(flow.itl_count),
        prefix_cache_query_tokens_total=0,
        prefix_cache_hit_tokens_total=0,
    )


def _packed(
    model: str,
    batches: list[OpenBatch],
    rows: tuple[Backlog, ...],
    scenario: Scenario,
    now_s: float,
) -> list[OpenBatch]:
    """Return the batches with the production packer's choice first, the others by deadline."""
    settings = scenario.config.batching
    pick = PACKERS[settings.packing](
        PackingView(
            ask=Ask(instance_id="any", model=model, limit=1, ends_at=None),
            backlog=rows,
        ),
        PackingSettings(deadline_bucket_s=settings.deadline_bucket_s, request_s=settings.request_s),
        at(now_s),
    )
    first = pick.batch_id if isinstance(pick, Pick) else ""
    return sorted(batches, key=lambda b: (b.id != first, b.deadline_s, b.id))
