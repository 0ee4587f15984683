"""When open work ends on the instances that serve and on those to come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import hypot

from hpcserve.policy.estimate.cost import Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Coming:
    """An instance on its way: seconds until it serves."""

    p50_s: float
    p90_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What serves the model of a batch."""

    serving: int
    coming: tuple[Coming, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Open lines, and what one of them costs."""

    #: those in flight are open in part
    lines: float
    cost: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Seconds until the work is done, and instance-seconds that it takes."""

    p50_s: float
    p90_s: float
    instance_s: float


def finish(works: Sequence[Work], capacity: Capacity) -> Finish | None:
    """Return when all *works* are done; None when nothing serves and nothing comes.

    The two uncertainties, of the work and of the instances' starts, are taken as independent.
    """
    if not capacity.serving and not capacity.coming:
        return None
    work = sum(w.lines * w.cost.p50_s for w in works)
    more = hypot(*(w.lines * (w.cost.p90_s - w.cost.p50_s) for w in works))
    soon, late = (c.p50_s for c in capacity.coming), [c.p90_s for c in capacity.coming]
    arrivals = sorted(soon)
    middle = _ends(work, capacity.serving, arrivals)
    if_costly = _ends(work + more, capacity.serving, arrivals)
    if_late = _ends(work, capacity.serving, sorted(late))
    margin = hypot(if_costly - middle, max(0.0, if_late - middle))
    return Finish(p50_s=middle, p90_s=middle + margin, instance_s=work)


def _ends(instance_s: float, serving: int, arrivals: Iterable[float]) -> float:
    """Return when *instance_s* are worked off, with one instance more at each of *arrivals*."""
    now = 0.0
    for at in arrivals:
        done = serving * max(0.0, at - now)
        if done >= instance_s:
            break
        instance_s -= done
        now, serving = max(now, at), serving + 1
    return now + instance_s / serving
