"""What all requests of one gateway process share: the table, the pools, the router, the books."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from hpcserve.config.tree import Gateway as GatewaySettings
from hpcserve.domain.credentials import engine_key
from hpcserve.domain.fleet import Demand
from hpcserve.domain.instance import Instance, InstanceState
from hpcserve.domain.load import EngineLoad
from hpcserve.domain.model import Model
from hpcserve.errors import HpcserveError
from hpcserve.gateway.access_log import AccessLog
from hpcserve.gateway.envelope import Refusal
from hpcserve.gateway.key_cache import KeyCache
from hpcserve.gateway.metrics import BUCKETS_S, Metrics
from hpcserve.gateway.table import ModelView, Snapshot, observe
from hpcserve.gateway.upstream import Pool
from hpcserve.policy.admission.fair_queue import FairQueue
from hpcserve.policy.routing.eligible import eligible
from hpcserve.policy.routing.fit import READINGS_MAX, Line, Reading, fit, reading
from hpcserve.policy.routing.registry import policy
from hpcserve.policy.routing.seat import Ask
from hpcserve.ports.clock import Clock
from hpcserve.ports.ledger import Ledger, Tx

log = logging.getLogger(__name__)

#: `retry-after` while nobody knows how long a start takes, s: short enough that clients do retry
UNKNOWN_ETA_S = 15.0
#: requests before their durations say how much headroom one needs
USUAL_REQUESTS_MIN = 20
#: models that a 404 lists; more would be no help
KNOWN_SHOWN = 50


class Waiter(Protocol):
    """A request in the queue."""

    def seat_free(self, pool: Pool) -> None:
        """Go on at *pool*."""
        ...


class Lane:
    """One model on the hot path: its pools, its queue, and what is asked of it."""

    __slots__ = (
        "asked",
        "name",
        "pools",
        "queue",
        "reported",
        "requests",
        "retry_credit",
        "suspects",
        "turn",
        "view",
    )

    def __init__(self, view: ModelView, settings: GatewaySettings) -> None:
        self.name = view.name
        self.view = view
        self.queue: FairQueue[Waiter] = FairQueue(settings.queue_max)
        #: instances that failed lately and rest, with the monotonic time until which
        self.suspects: dict[str, float] = {}
        #: retries that may still be made; each request adds a little
        self.retry_credit = settings.retry_credit_max
        #: parallel to `view.seats`
        self.pools: tuple[Pool, ...] = ()
        #: requests so far
        self.turn = 0
        #: requests that are not answered yet
        self.requests = 0
        #: asked for since the last report of demand
        self.asked = False
        #: running and waiting of that report
        self.reported = (0, 0)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self.queue)

    @property
    def running(self) -> int:
        """Requests with an instance, or on their way to one."""
        return self.requests - len(self.queue)


class Dispatch:
    """The shared state of one gateway process; all of it belongs to one event loop."""

    def __init__(
        self,
        *,
        gateway_id: str,
        settings: GatewaySettings,
        catalog: Callable[[], Mapping[str, Model]],
        secret: bytes,
        ledger: Ledger,
        clock: Clock,
        access_log: AccessLog,
        wake: Callable[[], None],
    ) -> None:
        self.gateway_id = gateway_id
        self.settings = settings
        self.clock = clock
        #: s on the clock that never goes back
        self.monotonic_s = clock.monotonic_s
        self.keys = KeyCache(ledger, clock, settings)
        self.metrics = Metrics()
        self.access_log = access_log
        self._catalog = catalog
        self._secret = secret
        self._ledger = ledger
        self._wake = wake
        self._policy = policy(settings.router)
        self._pools: dict[str, Pool] = {}
        self._load_s: dict[str, float] = {}
        self._loads: dict[str, EngineLoad] = {}
        self._readings: dict[str, deque[Reading]] = {}
        self._lines: dict[str, Line] = {}
        self._request_number = 0
        self._request_prefix = f"req-{gateway_id}-".encode()
        empty = observe(catalog(), (), {}, clock.now())
        self.snapshot = empty
        self.lanes = {name: Lane(view, settings) for name, view in empty.models.items()}
        self.metrics.gauges = self._gauges
        #: seconds since the epoch, less the monotonic clock; renewed each sweep
        self.wall_offset_s = clock.now().timestamp() - clock.monotonic_s()
        #: the ledger answered the last look
        self.ledger_answers = True
        #: requests that are alike are to meet again
        self.wants_affinity = settings.router == "affinity"
        #: the table has been read at least once
        self.observed = False

    # observe

    async def refresh(self) -> None:
        """Look at the ledger for the instances that serve."""
        try:
            live = await self._ledger.transact(_live)
        except HpcserveError as error:
            if self.ledger_answers:
                log.warning("the instance table stays as it is: %s", error.message)
            self.ledger_answers = False
            return
        self.ledger_answers = self.observed = True
        for instance in live:
            if instance.state is InstanceState.READY and instance.ready_at and instance.started_at:
                load = (instance.ready_at - instance.started_at).total_seconds()
                self._load_s[instance.model] = load
        lines = self._learn(live)
        self._apply(observe(self._catalog(), live, self._load_s, self.clock.now(), lines))

    def _learn(self, live: Iterable[Instance]) -> Mapping[str, Line]:
        """Take new reports of the engines into the fits; return the line of each model."""
        loads = {each.id: each.load for each in live if each.load is not None}
        for instance in live:
            before, after = self._loads.get(instance.id), loads.get(instance.id)
            if before is None or after is None or before.at == after.at:
                continue
            seen = reading(before, after)
            if seen is not None:
                readings = self._readings.setdefault(instance.model, deque(maxlen=READINGS_MAX))
                readings.append(seen)
                line = fit(readings)
                if line is not None:
                    self._lines[instance.model] = line
        self._loads = loads
        return self._lines

    def _apply(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        pools: dict[str, Pool] = {}
        lanes: dict[str, Lane] = {}
        for name, view in snapshot.models.items():
            lane = lanes[name] = self.lanes.get(name) or Lane(view, self.settings)
            every = [self._pool(instance) for instance in view.instances]
            pools.update((pool.instance_id, pool) for pool in every)
            kept = eligible(view.seats, self._usual_request_s(name))
            lane.view = replace(view, seats=tuple(view.seats[index] for index in kept))
            lane.pools = tuple(every[index] for index in kept)
        for gone in self._pools.keys() - pools.keys():
            self._pools[gone].close()
        self._pools = pools
        # models may come and go with the catalog
        self.lanes = lanes
        for lane in lanes.values():
            self.serve_waiting(lane)

    def _usual_request_s(self, model: str) -> float:
        """Return the p95 of this model's requests; 0 while too few were seen."""
        seen = self.metrics.duration.get(model)
        if seen is None or sum(seen.counts) < USUAL_REQUESTS_MIN:
            return 0.0
        return min(seen.quantile_s(0.95), BUCKETS_S[-1])

    def _pool(self, instance: Instance) -> Pool:
        known = self._pools.get(instance.id)
        if known is not None:
            return known
        assert instance.host is not None
        assert instance.port is not None
        return Pool(
            instance.id,
            host=instance.host,
            port=instance.port,
            key=engine_key(self._secret, instance.id),
            clock=self.clock,
            settings=self.settings,
        )

    # decide

    def choose(
        self, lane: Lane, tokens: int, tried: Collection[str], affinity: int | None = None
    ) -> Pool | None:
        """Return the instance that gets a request next; None: there is none with room."""
        pools = lane.pools
        seats = lane.view.seats
        if not pools:
            return None
        lane.turn += 1
        if not tried and not lane.suspects:
            pool = pools[self._policy(Ask(lane.turn, tokens, affinity), seats, pools)]
            if pool.requests < seats[0].slots:
                return pool
        left = self._left(lane, tried)
        if not left:
            return None
        pools = tuple(pools[index] for index in left)
        seats = tuple(seats[index] for index in left)
        return pools[self._policy(Ask(lane.turn, tokens, affinity), seats, pools)]

    def _left(self, lane: Lane, tried: Collection[str]) -> list[int]:
        """Return which seats have room, were not tried, and have not failed lately.

        An instance that failed lately is still taken when there is no other: a breaker that ejects
        the last instance turns a short fault into a long one. That the others are full is no reason
        to go back to it.
        """
        now_s = self.clock.monotonic_s()
        untried = [index for index, pool in enumerate(lane.pools) if pool.instance_id not in tried]
        sound = [
            index
            for index in untried
            if lane.suspects.get(lane.pools[index].instance_id, 0.0) <= now_s
        ]
        return [
            index
            for index in sound or untried
            if lane.pools[index].requests < lane.view.seats[index].slots
        ]

    def failed(self, lane: Lane, pool: Pool) -> None:
        """Note a fault of an instance; several in a row and it rests."""
        pool.faults += 1
        if pool.faults >= self.settings.breaker_faults:
            rest_s = self.clock.monotonic_s() + self.settings.breaker_rest_s
            lane.suspects[pool.instance_id] = rest_s

    def may_retry(self, lane: Lane) -> bool:
        """Take one retry from the budget, if there is one: retries must not double an overload."""
        if lane.retry_credit < 1.0:
            return False
        lane.retry_credit -= 1.0
        return True

    def serve_waiting(self, lane: Lane) -> None:
        """Hand free seats to those who wait, in fair order."""
        while len(lane.queue):
            pool = self.choose(lane, 0, ())
            if pool is None:
                return
            waiter = lane.queue.take()
            if waiter is None:
                return
            waiter.seat_free(pool)

    def unknown_model(self, model: str) -> Refusal:
        """Return the 404 that lists the known models."""
        known = sorted(self.lanes)
        shown = ", ".join(known[:KNOWN_SHOWN]) or "none"
        return Refusal(
            status=404,
            message=f"The model `{model[:200]}` does not exist; known are: {shown}.",
            code="model_not_found",
        )

    def full(self, lane: Lane) -> Refusal:
        """Return the 429 for a full queue."""
        return Refusal(
            status=429,
            message=f"All instances of `{lane.name}` are full; {len(lane.queue)} requests wait.",
            code="queue_full",
            retry_after_s=self.settings.queue_retry_s,
            should_retry=True,
        )

    def starting(self, lane: Lane) -> Refusal:
        """Return the 503 that says how a model without an instance stands."""
        standing = lane.view.standing
        eta_s = standing.eta_s
        job = f", Slurm job {standing.job_id}" if standing.job_id else ""
        slurm = " ".join(word for word in (standing.job_state, standing.job_reason) if word)
        when = f"ready in about {eta_s:.0f} s" if eta_s is not None else "time to ready unknown"
        return Refusal(
            status=503,
            message=(
                f"The model `{lane.name}` is not ready: {standing.state}{job}"
                f"{f' ({slurm})' if slurm else ''}: {standing.reason}; {when}."
            ),
            code="model_starting",
            retry_after_s=UNKNOWN_ETA_S if eta_s is None else max(1.0, eta_s),
            should_retry=True,
            detail={
                "state": standing.state,
                "reason": standing.reason,
                "job_id": standing.job_id,
                "job_state": standing.job_state,
                "job_reason": standing.job_reason,
                "eta_s": eta_s,
            },
        )

    def next_request_id(self) -> bytes:
        """Return an id for one request: unique, since gateways have unique ids."""
        self._request_number += 1
        return b"%b%x" % (self._request_prefix, self._request_number)

    # act

    async def report_demand(self) -> None:
        """Tell the controller what is asked: again and again, and once when it has ended."""
        now = self.clock.now()
        lanes = [
            lane
            for lane in self.lanes.values()
            if lane.asked or lane.requests or (lane.running, lane.waiting) != lane.reported
        ]
        if not lanes:
            return
        demand = tuple(
            Demand(model=lane.name, asked_at=now, running=lane.running, waiting=lane.waiting)
            for lane in lanes
        )
        cold = any(lane.asked and not lane.pools for lane in lanes)
        try:
            await self._ledger.transact(lambda tx: tx.demand.report(self.gateway_id, demand))
        except HpcserveError as error:
            log.warning("demand cannot be reported: %s", error.message)
            return
        for lane, told in zip(lanes, demand, strict=True):
            lane.asked = False
            lane.reported = (told.running, told.waiting)
        if cold:
            self._wake()

    def sweep(self) -> None:
        """Do what is due once a second: forget idle connections, write the log."""
        now_s = self.clock.monotonic_s()
        self.wall_offset_s = self.clock.now().timestamp() - now_s
        for pool in self._pools.values():
            pool.sweep(now_s)
        for lane in self.lanes.values():
            credit = lane.retry_credit + self.settings.retry_credit_per_s
            lane.retry_credit = min(self.settings.retry_credit_max, credit)
            known = {pool.instance_id for pool in lane.pools}
            lane.suspects = {
                name: until_s for name, until_s in lane.suspects.items() if name in known
            }
        self.access_log.flush()

    def close(self) -> None:
        """Let go of all connections to engines and write what is left of the log."""
        for pool in self._pools.values():
            pool.close()
        self.access_log.flush()

    def _gauges(self) -> Iterable[tuple[str, int, int]]:
        return ((lane.name, lane.running, lane.waiting) for lane in self.lanes.values())


def _live(tx: Tx) -> tuple[Instance, ...]:
    return tx.instances.live()
