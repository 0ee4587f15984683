"""The Fleet: everything a decision may know, frozen at one instant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from hpcserve.domain.batch import Backlog
from hpcserve.domain.instance import Instance
from hpcserve.domain.job import JobsView, JobView, Partition
from hpcserve.domain.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What interactive users want of one model, as the gateways saw it."""

    model: str
    #: last interactive request, served or refused
    asked_at: datetime
    #: requests being served and waiting for an instance, at that time
    running: int
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """One snapshot. Tuples keep an order, so that no decision hangs on a set's."""

    #: instances that are not ENDED, oldest first
    instances: tuple[Instance, ...]
    #: recently ended, newest first, and any whose job the scheduler still lists
    ended: tuple[Instance, ...]
    #: None: the scheduler did not answer this time
    jobs: JobsView | None
    #: what accounting says of jobs that `jobs` no longer lists, by token
    accounted: Mapping[str, JobView]
    #: since when agents' heartbeats could be heard without a gap; None: nobody listens, so the
    #: silence of an agent says nothing
    listening_since: datetime | None
    partitions: tuple[Partition, ...]
    #: the catalog, by name
    models: Mapping[str, Model]
    #: by model
    demand: Mapping[str, Demand]
    backlog: tuple[Backlog, ...]
    #: operator's resets of a model's back-off, by model
    forgiven_at: Mapping[str, datetime]
    #: an operator has closed the site: why; everything ends and nothing is submitted
    closed_because: str | None = None
    #: where BATCH instances go; empty: there is no preemptible partition
    opportunistic_partition: str = ""
