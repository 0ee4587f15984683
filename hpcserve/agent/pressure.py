"""Turns readings of the engine into what the local limit decides from."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from hpcserve.domain.load import EngineLoad
from hpcserve.policy.local_limit import LocalLimit, Reading

#: weight of the newest reading in the mean of finished lines a second
_NEWEST = 0.3


class Pressure:
    """The batch cap of one instance, and how fast batch requests finish."""

    def __init__(self, limit: LocalLimit) -> None:
        """Take the limit to begin with."""
        self.limit = limit
        #: batch requests finished a second; None until some have
        self.lines_per_s: float | None = None
        self._finished = 0
        self._peak = 0
        self._before: EngineLoad | None = None
        self._interactive_at: datetime | None = None
        self._was_above = False

    def started(self, in_flight: int) -> None:
        """Note that so many batch requests are in flight now."""
        self._peak = max(self._peak, in_flight)

    def finished(self) -> None:
        """Note a finished batch request."""
        self._finished += 1

    def observe(self, load: EngineLoad, *, in_flight: int, is_obeyed: bool = False) -> int:
        """Return the cap after this reading of the engine.

        What the engine has beyond the most that we had in flight since the last reading is
        interactive; with less than that, requests that just came or went would count as such.
        With *is_obeyed* the engine itself keeps batch under the cap and lets chat take slots: what
        is in flight above the cap waits because it was told so, not for a slot, and requests that
        it pushed out for that say nothing of its KV cache.
        """
        before, self._before = self._before, load
        interactive = max(0, load.running + load.waiting - max(self._peak, in_flight))
        held = max(0, in_flight - self.limit.cap)
        was_told = is_obeyed and bool(interactive or held or self._was_above)
        if interactive:
            self._interactive_at = load.at
        if before is not None and (seconds := (load.at - before.at).total_seconds()) > 0:
            self._count_lines(seconds)
            seen = self._reading(before, load, interactive, held, seconds)
            self.limit = self.limit.next(replace(seen, preempted=0) if was_told else seen)
        self._was_above = in_flight > self.limit.cap
        self._peak = min(in_flight, self.limit.cap)
        return self.limit.cap

    def _reading(
        self, before: EngineLoad, load: EngineLoad, interactive: int, held: int, seconds: float
    ) -> Reading:
        tokens = load.itl_count - before.itl_count
        quiet = load.at - self._interactive_at if self._interactive_at else None
        return Reading(
            interactive=interactive,
            waiting=max(0, load.waiting - held),
            batch=self._peak,
            itl_s=(load.itl_sum_s - before.itl_sum_s) / tokens if tokens > 0 else None,
            tokens_per_s=(load.generation_tokens_total - before.generation_tokens_total) / seconds,
            preempted=load.preemptions_total - before.preemptions_total,
            quiet_s=quiet.total_seconds() if quiet is not None else None,
        )

    def _count_lines(self, seconds: float) -> None:
        rate = self._finished / seconds
        self._finished = 0
        if self.lines_per_s is not None:
            self.lines_per_s = _NEWEST * rate + (1 - _NEWEST) * self.lines_per_s
        elif rate > 0:
            self.lines_per_s = rate
