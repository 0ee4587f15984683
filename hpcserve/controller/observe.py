"""Takes the snapshot that a decision works on: one question to the scheduler, one transaction.

The scheduler is asked *before* the ledger is read: an intent is committed before its job is
submitted, so every job of ours in the answer has its instance in the ledger by then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import final

from hpcserve.config import Config
from hpcserve.domain.fleet import Fleet
from hpcserve.domain.job import JobPhase, JobsView, JobView, Partition
from hpcserve.domain.model import Model
from hpcserve.errors import BackendError
from hpcserve.ports.clock import Clock
from hpcserve.ports.cluster import Cluster
from hpcserve.ports.ledger import Ledger, Tx
from hpcserve.ports.notes import CLOSED, LISTENING

log = logging.getLogger(__name__)

#: partitions change rarely: asked for at most so often
PARTITIONS_EVERY = timedelta(seconds=60)
#: a gateway's note that is older means that nobody listens; three of the gateways' periods
LISTENING_MAX_AGE = timedelta(seconds=15)
#: the event by which an operator resets a model's back-off
FORGIVEN = "forgiven"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """The scheduler does not answer."""

    since: datetime
    message: str


@final
class Observer:
    """Makes one Fleet a tick."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        cluster: Cluster,
        clock: Clock,
        config: Config,
        catalog: Callable[[], Mapping[str, Model]],
    ) -> None:
        """Take the world; `catalog` returns the models as they are now."""
        self._ledger = ledger
        self._cluster = cluster
        self._clock = clock
        self._config = config
        self._catalog = catalog
        self._partitions: tuple[Partition, ...] = ()
        self._partitions_at: datetime | None = None
        self.outage: Outage | None = None

    async def observe(self) -> Fleet:
        """Return the fleet as it is now; `jobs` is None while the scheduler does not answer."""
        jobs = await self._ask()
        fleet = await self._ledger.transact(lambda tx: self._read(tx, jobs))
        return replace(fleet, accounted=await self._account(fleet))

    def _read(self, tx: Tx, jobs: JobsView | None) -> Fleet:
        now = self._clock.now()
        instances = tx.instances.live()
        ended = tx.instances.ended(self._config.controller.ended_shown)
        known = {instance.token for instance in (*instances, *ended)}
        listed = () if jobs is None else jobs.jobs
        # a token is its instance's id: an ended instance too old for `ended` is found by it
        late = tuple(
            instance
            for token in sorted(listed)
            if token not in known and (instance := tx.instances.get(token)) is not None
        )
        memory = timedelta(seconds=self._config.scaling.demand_memory_s)
        return Fleet(
            instances=instances,
            ended=(*ended, *late),
            jobs=jobs,
            accounted={},
            listening_since=_listening_since(tx.notes.get(LISTENING), now),
            partitions=self._partitions,
            models=self._catalog(),
            demand={demand.model: demand for demand in tx.demand.read(now - memory)},
            backlog=tx.batches.backlog(),
            forgiven_at=tx.events.last(FORGIVEN),
            closed_because=str((tx.notes.get(CLOSED) or {}).get("reason", "")) or None,
            opportunistic_partition=self._config.slurm.opportunistic_partition,
        )

    async def _ask(self) -> JobsView | None:
        now = self._clock.now()
        try:
            jobs = await self._cluster.jobs()
            if self._partitions_at is None or now - self._partitions_at >= PARTITIONS_EVERY:
                self._partitions = await self._cluster.partitions()
                self._partitions_at = now
        except BackendError as error:
            if self.outage is None:
                log.warning("the scheduler does not answer: %s", error.message)
                self.outage = Outage(since=now, message=error.message)
            return None
        if self.outage is not None:
            away_s = (now - self.outage.since).total_seconds()
            log.warning("the scheduler answers again after %.0f s", away_s)
            self.outage = None
        return jobs

    async def _account(self, fleet: Fleet) -> Mapping[str, JobView]:
        """Ask accounting, with one call, for jobs that the scheduler has forgotten."""
        if fleet.jobs is None:
            return {}
        unlisted = {
            instance.token: instance.job_id
            for instance in fleet.instances
            if instance.job_id is not None and instance.token not in fleet.jobs.jobs
        }
        if not unlisted:
            return {}
        try:
            found = await self._cluster.accounted(unlisted)
        except BackendError as error:
            log.warning("accounting does not answer: %s", error.message)
            return {}
        # accounting lags behind: only an end is news
        return {token: job for token, job in found.items() if job.phase is JobPhase.GONE}


def _listening_since(note: Mapping[str, object] | None, now: datetime) -> datetime | None:
    """Read a gateway's note: since when it has listened, unless the note is old."""
    if note is None or now - datetime.fromisoformat(str(note["at"])) > LISTENING_MAX_AGE:
        return None
    return datetime.fromisoformat(str(note["since"]))
