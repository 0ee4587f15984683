"""How many batch requests one instance runs beside its interactive ones, decided twice a second.

Additive growth is too slow and free growth too bold, so this is Chiron's Algorithm 1 (arXiv
2501.08090): backpressure BP is the worse of observed ITL over promised ITL and of throughput lost;
below 1 the cap B grows to the mean of B and B/BP, otherwise it halves. Three things differ, since
the algorithm taken literally walks at random down to 1:

- Growth and throughput count only while the cap binds; an idle cap says nothing.
- Lost throughput counts only when the engine pushed running requests out for want of KV blocks in
  that time, which is what it is meant to detect; otherwise it is noise of the load.
- The ITL promise counts only while somebody interactive is there. Without, the cap doubles each
  time.

Around the engine's ceiling of concurrent requests: while interactive users are about, some slots
stay free, so that the next one need not wait for a batch request to end. When they are gone, a few
requests more than slots are in flight, so that a slot that falls free is taken in the same step.
A request that waits inside the engine beside interactive ones waits for a slot that a batch request
holds: so many batch requests go at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

#: weight of the new value when growing; Chiron's alpha
_ALPHA = 0.5
#: least backpressure that growth is computed with: at most doubling and a half at one go
_BP_MIN = 0.25
#: throughput below this part of the last one is lost, not noise
_KEPT = 0.9
#: an eighth of the slots is kept free, or taken beyond them
_MARGIN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What happened on one instance since the last decision."""

    #: requests in the engine that are not ours
    interactive: int
    #: requests that wait inside the engine
    waiting: int
    #: batch requests in flight
    batch: int
    #: mean inter-token latency; None when no token came
    itl_s: float | None
    tokens_per_s: float
    #: running requests pushed out for want of KV blocks
    preempted: int
    #: since somebody interactive was last seen; None: never
    quiet_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalLimit:
    """The cap, and what it is decided from."""

    cap: int
    #: the engine's own ceiling of concurrent requests
    ceiling: int
    itl_slo_s: float
    #: slots are kept free for so long after the last interactive request, s
    memory_s: float
    tokens_per_s: float = 0.0
    #: why the cap is what it is
    reason: str = "no interactive request has been seen"

    def next(self, seen: Reading) -> LocalLimit:
        """Return the limit after *seen*."""
        cap, reason = self._decide(seen)
        ceiling = self._ceiling(seen)
        return replace(
            self, cap=max(0, min(cap, ceiling)), tokens_per_s=seen.tokens_per_s, reason=reason
        )

    def _ceiling(self, seen: Reading) -> int:
        margin = max(1, self.ceiling // _MARGIN)
        is_quiet = seen.quiet_s is None or seen.quiet_s > self.memory_s
        return self.ceiling + margin if is_quiet else self.ceiling - margin

    def _decide(self, seen: Reading) -> tuple[int, str]:
        binds = seen.batch >= self.cap
        if seen.interactive and seen.waiting:
            return (
                min(self.cap, seen.batch - seen.waiting),
                f"{seen.waiting} requests wait for a slot beside interactive ones",
            )
        lost = binds and seen.preempted > 0 and seen.tokens_per_s < _KEPT * self.tokens_per_s
        if lost:
            return max(1, self.cap // 2), (
                f"the engine pushed {seen.preempted} requests out and lost throughput"
            )
        if not seen.interactive:
            return max(1, self.cap * 2), "no interactive request is there"
        if seen.itl_s is None:
            return self.cap, "no token to judge by"
        return self._by_latency(seen.itl_s, binds=binds)

    def _by_latency(self, itl_s: float, *, binds: bool) -> tuple[int, str]:
        pressure = itl_s / self.itl_slo_s
        said = f"ITL is {itl_s * 1000:.0f} of {self.itl_slo_s * 1000:.0f} ms"
        if pressure >= 1:
            return self.cap // 2, said
        if not binds:
            return self.cap, f"{said}; the cap does not bind"
        grown = _ALPHA * self.cap / max(pressure, _BP_MIN) + (1 - _ALPHA) * self.cap
        return max(self.cap + 1, int(grown)), said
