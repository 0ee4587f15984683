"""Why and how an agent ends: one value, decided anew with each signal, order and fault."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from datetime import datetime

from hpcserve.agent.allocation import Allocation
from hpcserve.config.tree import Agent as AgentSettings
from hpcserve.domain.job import EndReason
from hpcserve.ports.control import Ending


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """The end of an agent, announced or at once."""

    ending: Ending
    #: running requests may finish until then, monotonic s
    until_s: float
    #: batch requests in flight may finish too; else they go back at once, so that a kill without
    #: further warning costs nothing
    finishes_batch: bool = False
    #: nobody wants to hear of it: the ledger has given this instance up
    is_silent: bool = False
    #: SIGTERM came
    is_termed: bool = False

    def and_then(self, later: Departure) -> Departure:
        """Return this departure when *later* befalls it: sooner, never later."""
        return replace(
            self,
            ending=later.ending if later.ending.reason.is_fault else self.ending,
            until_s=min(self.until_s, later.until_s),
            finishes_batch=self.finishes_batch and later.finishes_batch,
            is_silent=self.is_silent or later.is_silent,
            is_termed=self.is_termed or later.is_termed,
        )


def on_signal(
    signum: int,
    *,
    allocation: Allocation,
    current: Departure | None,
    settings: AgentSettings,
    now: datetime,
    now_s: float,
) -> Departure:
    """Decide what a signal of the scheduler means. A second SIGTERM means at once."""
    is_term = signum == signal.SIGTERM
    reason = allocation.cause(now)
    left_s = settings.drain_s
    if reason is EndReason.EXPIRED:
        until_end_s = (allocation.ends_at - now).total_seconds()
        left_s = min(left_s, max(0.0, until_end_s - settings.stop_s))
    if is_term:
        again = current is not None and current.is_termed
        left_s = 0.0 if again else min(settings.drain_s, settings.term_s)
    why = "the time limit is near" if reason is EndReason.EXPIRED else "the job is preempted"
    return Departure(
        ending=Ending(reason=reason, message=f"{signal.Signals(signum).name} came: {why}."),
        until_s=now_s + left_s,
        finishes_batch=reason is EndReason.EXPIRED and not is_term and allocation.is_certain,
        is_termed=is_term,
    )


def on_drain_order(settings: AgentSettings, now_s: float) -> Departure:
    """Decide what the control plane's DRAIN means: everything that runs may finish."""
    return Departure(
        ending=Ending(reason=EndReason.DRAINED, message="Drained as the controller asked."),
        until_s=now_s + settings.drain_s,
        finishes_batch=True,
    )


def on_exit_order(now_s: float) -> Departure:
    """Decide what the control plane's EXIT means: at once, and nobody listens."""
    ending = Ending(reason=EndReason.LOST, message="The ledger has given this instance up.")
    return Departure(ending=ending, until_s=now_s, is_silent=True)


def on_orphaned(silence_s: float, now_s: float) -> Departure:
    """Decide what it means that no gateway answers any more: nobody can use this instance."""
    message = f"No gateway has answered for {silence_s:.0f} s, so nobody could use this instance."
    return Departure(ending=Ending(reason=EndReason.LOST, message=message), until_s=now_s)


def on_engine_end(ending: Ending, now_s: float) -> Departure:
    """Decide what the end of the engine means: there is nothing left to finish."""
    return Departure(ending=ending, until_s=now_s)
