"""Time to ready: how long after the request an instance serves, as it was observed.

In Slurm that is queue wait, prolog, load and warm-up: random, and sometimes hours. Instances that
still start count with their age, when that is longer than what the others took: else a jammed queue
would look as fast as yesterday's.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from hpcserve.domain.fleet import Fleet
from hpcserve.domain.instance import STARTING, Role

#: fewer observations than this are mixed with the first guess
_ENOUGH = 8

Samples = Mapping[tuple[str, Role], list[float]]


def observed_s(fleet: Fleet, now: datetime) -> Samples:
    """Return what was observed by model and role, s, sorted."""
    samples: dict[tuple[str, Role], list[float]] = {}
    for instance in (*fleet.instances, *fleet.ended):
        if instance.ready_at is not None:
            took_s = (instance.ready_at - instance.requested_at).total_seconds()
            samples.setdefault((instance.model, instance.role), []).append(took_s)
    for instance in fleet.instances:
        if instance.state in STARTING and instance.ready_at is None:
            seen = samples.setdefault((instance.model, instance.role), [])
            age_s = (now - instance.requested_at).total_seconds()
            if not seen or age_s > max(seen):
                seen.append(age_s)
    for seen in samples.values():
        seen.sort()
    return samples


def quantile_s(samples: Samples, model: str, role: Role, q: float, first_s: float) -> float:
    """Return the q-quantile; the first guess stands in for observations that are missing."""
    seen = samples.get((model, role), ())
    if len(seen) < _ENOUGH:
        seen = sorted([*seen, *([first_s] * (_ENOUGH - len(seen)))])
    return seen[min(len(seen) - 1, int(q * len(seen)))]
