"""A Job: what we hand to Slurm, and what Slurm says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from hpcserve.domain.model import Model


class EndReason(StrEnum):
    """Why an instance ended; apart from its state. Only faults (`is_fault`) drive back-off."""

    SCALED_IN = "scaled_in"
    DRAINED = "drained"
    EXPIRED = "expired"
    PREEMPTED = "preempted"
    NODE_FAILED = "node_failed"
    OUT_OF_MEMORY = "out_of_memory"
    LOAD_FAILED = "load_failed"
    CRASHED = "crashed"
    CANCELLED_OUTSIDE = "cancelled_outside"
    REJECTED = "rejected"
    LOST = "lost"

    @property
    def is_fault(self) -> bool:
        """Whether a replacement must wait: something about model, engine or request is wrong."""
        return self in _FAULTS


_FAULTS = frozenset(
    {EndReason.OUT_OF_MEMORY, EndReason.LOAD_FAILED, EndReason.CRASHED, EndReason.REJECTED}
)


class JobPhase(StrEnum):
    """Slurm's many job states, as far as they make a difference to an instance."""

    PENDING = "pending"
    #: has its allocation: running, suspended, configuring, completing
    HELD = "held"
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOrder:
    """What the agent in the job must know. It travels in the job's payload, never in a log."""

    instance_id: str
    token: str
    model: Model
    role: str
    #: where gateways write down how to reach them; on the shared file system
    gateways_dir: str
    #: logs and scratch of this instance
    instance_dir: str
    #: this instance's key to the control API; and the key that its engine asks for
    control_key: str
    engine_key: str
    #: settings of the agent (`[agent]`, `[engine]` of the configuration), JSON-able
    settings: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One job to submit. It is never requeued: a replacement is a new job and a new Instance."""

    #: unique; stands in the job's comment, so that a restarted controller finds its job again
    token: str
    name: str
    partition: str | None
    qos: str | None
    account: str | None
    nodes: int
    gpus_per_node: int
    gpu_type: str | None
    cpus_per_node: int
    memory_gib_per_node: int
    time_limit_s: int
    #: Slurm may shorten the limit down to this to fit a backfill hole; None forbids it
    time_min_s: int | None
    #: Slurm warns the job so long before its time limit
    notice_s: int
    order: AgentOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """One of our jobs as the scheduler sees it."""

    job_id: str
    token: str
    phase: JobPhase
    #: the scheduler's own words, for people
    state: str
    reason: str
    partition: str
    nodes: tuple[str, ...] = ()
    #: started, or expected to start when pending; None when unknown
    start_at: datetime | None = None
    #: when the time limit ends it; None while pending
    end_at: datetime | None = None
    #: only when GONE
    end_reason: EndReason | None = None
    exit_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsView:
    """All our jobs at one moment, from one question to the scheduler."""

    asked_at: datetime
    #: by token; a token that is missing is a job that the scheduler no longer knows
    jobs: Mapping[str, JobView]


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One partition of the cluster."""

    name: str
    is_default: bool
    is_up: bool
    max_time_s: int | None
    #: larger tiers may preempt smaller ones
    priority_tier: int
    #: Slurm's word (`off`, `cancel`, `requeue`); None when the version does not say
    preempt_mode: str | None
    grace_s: int | None
    nodes_total: int
    nodes_idle: int
    gpus_total: int
    gpus_idle: int
