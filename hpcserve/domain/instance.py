"""An Instance: one engine in one allocation, from the intent to its end.

One Instance is one Slurm job, submitted `--no-requeue`; it is never used again after its allocation
ended. `state` says where it is; `ending` and `end_reason` say why it goes or went. Facts come from
three sources that do not wait for one another (our own acts, the scheduler, the agent), so most
states list late facts as self-loops.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from hpcserve.domain.job import EndReason
from hpcserve.domain.lifecycle import Subject, Table, Transition
from hpcserve.domain.load import EngineLoad, GpuLoad


class Role(StrEnum):
    """What an instance is for."""

    INTERACTIVE = "interactive"
    MIXED = "mixed"
    BATCH = "batch"


class InstanceState(StrEnum):
    """Where an instance is."""

    #: intent committed to the ledger; sbatch not confirmed
    REQUESTED = "requested"
    #: the job is pending
    QUEUED = "queued"
    #: the job runs; its agent has not been heard
    ALLOCATED = "allocated"
    #: the agent is known; the engine is not healthy
    LOADING = "loading"
    #: serves
    READY = "ready"
    #: the scheduler says running, the agent is silent; gets no new work
    UNREACHABLE = "unreachable"
    #: takes no new work, finishes what it has
    DRAINING = "draining"
    #: told to end; the scheduler is not yet rid of it
    STOPPING = "stopping"
    ENDED = "ended"


class InstanceEvent(StrEnum):
    """What can happen to an instance."""

    SUBMITTED = "submitted"
    REJECTED = "rejected"
    STARTED = "started"
    REGISTERED = "registered"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    SILENT = "silent"
    HEARD = "heard"
    DRAIN = "drain"
    DRAINED = "drained"
    STOP = "stop"
    GONE = "gone"


_S = InstanceState
_E = InstanceEvent

INSTANCE = Table[InstanceState, InstanceEvent](
    "instance",
    {
        _S.REQUESTED: {
            _E.SUBMITTED: _S.QUEUED,
            _E.REJECTED: _S.ENDED,
            # submitted, but the controller died before it wrote that down
            _E.STARTED: _S.ALLOCATED,
            _E.REGISTERED: _S.LOADING,
            _E.STOP: _S.STOPPING,
            _E.GONE: _S.ENDED,
        },
        _S.QUEUED: {
            _E.STARTED: _S.ALLOCATED,
            _E.REGISTERED: _S.LOADING,
            _E.STOP: _S.STOPPING,
            _E.GONE: _S.ENDED,
            _E.SUBMITTED: _S.QUEUED,
        },
        _S.ALLOCATED: {
            _E.REGISTERED: _S.LOADING,
            _E.STOP: _S.STOPPING,
            _E.GONE: _S.ENDED,
            _E.SUBMITTED: _S.ALLOCATED,
            _E.STARTED: _S.ALLOCATED,
        },
        _S.LOADING: {
            _E.HEALTHY: _S.READY,
            _E.SILENT: _S.UNREACHABLE,
            _E.DRAIN: _S.STOPPING,
            _E.STOP: _S.STOPPING,
            _E.GONE: _S.ENDED,
            _E.SUBMITTED: _S.LOADING,
            _E.STARTED: _S.LOADING,
            _E.REGISTERED: _S.LOADING,
            _E.UNHEALTHY: _S.LOADING,
            _E.HEARD: _S.LOADING,
        },
        _S.READY: {
            _E.DRAIN: _S.DRAINING,
            _E.UNHEALTHY: _S.LOADING,
            _E.SILENT: _S.UNREACHABLE,
            _E.STOP: _S.STOPPING,
            _E.GONE: _S.ENDED,
            _E.SUBMITTED: _S.READY,
            _E.STARTED: _S.READY,
            _E.REGISTERED: _S.READY,
            _E.HEALTHY: _S.READY,
            _E.HEARD: _S.READY,
        },
        _S.UNREACHABLE: {
            # health is proved again before it serves
            _E.HEARD: _S.LOADING,
            _E.REGISTERED: _S.LOADING,
            _E.DRAIN: _S.STOPPING,
            _E.STOP: _S.STOPPING,
            _E.GONE: _S.ENDED,
            _E.STARTED: _S.UNREACHABLE,
            _E.SILENT: _S.UNREACHABLE,
            _E.UNHEALTHY: _S.UNREACHABLE,
        },
        _S.DRAINING: {
            _E.DRAINED: _S.STOPPING,
            _E.STOP: _S.STOPPING,
            _E.UNHEALTHY: _S.STOPPING,
            _E.GONE: _S.ENDED,
            _E.STARTED: _S.DRAINING,
            _E.REGISTERED: _S.DRAINING,
            _E.HEALTHY: _S.DRAINING,
            _E.SILENT: _S.DRAINING,
            _E.HEARD: _S.DRAINING,
            _E.DRAIN: _S.DRAINING,
        },
        _S.STOPPING: {
            _E.GONE: _S.ENDED,
            _E.REJECTED: _S.ENDED,
            _E.SUBMITTED: _S.STOPPING,
            _E.STARTED: _S.STOPPING,
            _E.REGISTERED: _S.STOPPING,
            _E.HEALTHY: _S.STOPPING,
            _E.UNHEALTHY: _S.STOPPING,
            _E.SILENT: _S.STOPPING,
            _E.HEARD: _S.STOPPING,
            _E.DRAIN: _S.STOPPING,
            _E.DRAINED: _S.STOPPING,
            _E.STOP: _S.STOPPING,
        },
        _S.ENDED: {
            # the scheduler may list a job for minutes after its end
            _E.GONE: _S.ENDED,
        },
    },
)

#: states in which an instance holds, or may yet hold, GPUs
LIVE = tuple(state for state in InstanceState if state is not InstanceState.ENDED)
#: states on the way to READY
STARTING = (_S.REQUESTED, _S.QUEUED, _S.ALLOCATED, _S.LOADING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One engine in one allocation."""

    id: str
    #: unique; stands in the job's comment
    token: str
    model: str
    role: Role
    state: InstanceState
    partition: str | None
    gpus: int
    time_limit_s: int
    #: why it was asked for
    reason: str
    requested_at: datetime
    job_id: str | None = None
    #: first time the scheduler did not list the job although it should; None while it does
    job_missing_at: datetime | None = None
    #: the scheduler's words, renewed each tick: `PENDING` and `Resources`
    job_state: str = ""
    job_reason: str = ""
    #: expected start of a pending job
    expected_start_at: datetime | None = None
    nodes: tuple[str, ...] = ()
    #: where the engine listens
    host: str | None = None
    port: int | None = None
    submitted_at: datetime | None = None
    started_at: datetime | None = None
    ready_at: datetime | None = None
    #: end of the allocation
    ends_at: datetime | None = None
    #: last word of the agent
    heard_at: datetime | None = None
    #: last time there was work for it
    busy_at: datetime | None = None
    #: when its job was last told to end
    stop_asked_at: datetime | None = None
    ended_at: datetime | None = None
    #: known reason of an end that is not complete yet
    ending: EndReason | None = None
    end_reason: EndReason | None = None
    #: one sentence on what went wrong, with the last lines of the log
    message: str = ""
    log_path: str = ""
    load: EngineLoad | None = None
    #: its GPUs as its agent last read them; none where there are none to read
    gpu_load: tuple[GpuLoad, ...] = ()
    #: optimistic lock; counts saves
    version: int = 0

    def on(
        self,
        event: InstanceEvent,
        *,
        at: datetime,
        reason: str,
        detail: Mapping[str, object] | None = None,
        **changes: object,
    ) -> tuple[Instance, Transition]:
        """Return the instance after *event* and the line for its story.

        Args:
            event: the fact or command.
            at: when.
            reason: one sentence for people.
            detail: further facts for the story.
            changes: fields that change with it.

        Raises:
            InvalidTransitionError: the table does not list the event in this state.

        """
        to = INSTANCE.next(self.id, self.state, event)
        transition = Transition(
            subject=Subject.INSTANCE,
            subject_id=self.id,
            at=at,
            event=event,
            from_state=self.state,
            to_state=to,
            reason=reason,
            detail=detail or {},
        )
        return replace(self, state=to, **changes), transition  # type: ignore[arg-type]  # fields by name

    @property
    def is_live(self) -> bool:
        """Whether it holds or may yet hold GPUs."""
        return self.state is not InstanceState.ENDED

    @property
    def base_url(self) -> str | None:
        """Where its engine listens, as `http://host:port`."""
        return f"http://{self.host}:{self.port}" if self.host and self.port else None
