"""What an agent may ask of, and tell, the control plane.

The gateway serves these calls over HTTP (`/control/v1/<call>`, bearer control key, header
`hpcserve-instance`); the agent's client speaks them; the simulator calls them directly. Each answer
carries an Order, so an instance that the ledger no longer knows is told to exit at its next word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from hpcserve.domain.batch import RequestEvent
from hpcserve.domain.job import EndReason
from hpcserve.domain.load import EngineLoad, GpuReading


class Order(StrEnum):
    """What the agent is to do."""

    CONTINUE = "continue"
    #: take no new work, finish what runs, then end
    DRAIN = "drain"
    #: end now: the ledger has given this instance up
    EXIT = "exit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """First word of an agent."""

    job_id: str
    node: str
    #: where the engine will listen
    host: str
    port: int
    log_path: str
    #: end of the allocation as the job sees it; None where Slurm does not say
    ends_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Regular word of an agent."""

    #: the engine answers, and has proved so by generating a token since it started
    healthy: bool
    load: EngineLoad | None
    gpus: GpuReading
    #: batch requests in flight in this agent
    batch_running: int
    #: the agent drains by itself (signal of the scheduler)
    draining: bool
    #: for people: `loading weights`, `ready`
    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Last word of an agent, or the announcement of its end."""

    reason: EndReason
    #: one sentence with the last lines of the log
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantedLine:
    """One request to run: the body exactly as its user wrote it, as bytes of JSON."""

    line_no: int
    custom_id: str
    attempts: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A lease with its payload. All lines are of one batch and go to one route."""

    lease_id: int
    batch_id: str
    #: `/v1/chat/completions` and so on
    route: str
    expires_at: datetime
    lines: tuple[GrantedLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of one line; `line` is what goes to the output or error file, no newline."""

    line_no: int
    #: ANSWERED or REFUSED
    event: RequestEvent
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    line: bytes


class Control(Protocol):
    """The control plane as an agent sees it.

    Raises BackendError(retryable=True) when it is out of reach, FencedError when a lease is lost.
    """

    async def register(self, registration: Registration) -> Order:
        """Say hello; may be repeated."""
        ...

    async def beat(self, heartbeat: Heartbeat) -> Order:
        """Say that all goes on."""
        ...

    async def draining(self, ending: Ending) -> Order:
        """Announce that this instance takes no more work and will end, and why."""
        ...

    async def ended(self, ending: Ending) -> Order:
        """Say the last word."""
        ...

    async def lease(self, limit: int, holding: Sequence[int]) -> Grant | None:
        """Ask for up to *limit* batch requests; None when there is nothing for this instance.

        Args:
            limit: how many.
            holding: leases that the agent still works on. Others of this instance go back without
                cost: their answer was lost on the way, and each heartbeat would renew them.

        """
        ...

    async def settle(self, lease_id: int, outcomes: Sequence[Outcome]) -> frozenset[int]:
        """Hand results in; returns the lines that were taken (durable when it returns)."""
        ...

    async def release(self, lease_id: int, line_nos: Sequence[int] | None) -> None:
        """Hand lines back undone (None: all that are left); costs them no attempt."""
        ...
