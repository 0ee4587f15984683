"""When instances that are on their way will serve: queue wait and load, as this model had them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from hpcserve.domain.instance import STARTING, Instance, InstanceState
from hpcserve.policy.estimate.finish import Capacity, Coming

#: observations below which the slowest one is no 0.9 quantile yet
_ENOUGH = 8
#: the slowest of a few, and a first guess, may be exceeded so many times
_SLOWER = 2.0


def capacity(
    live: Sequence[Instance],
    ended: Sequence[Instance],
    model: str,
    *,
    now: datetime,
    first_s: float,
) -> Capacity:
    """Return what serves *model* and what will; when nothing does, one that is asked for now.

    Args:
        live: instances that are not ENDED, of any model.
        ended: instances that have ended; how long they took to serve is the history.
        model: its name.
        now: the time.
        first_s: from request to READY of a model that never ran, s.

    """
    took_s = sorted(
        (instance.ready_at - instance.requested_at).total_seconds()
        for instance in (*live, *ended)
        if instance.model == model and instance.ready_at is not None
    )
    mine = [instance for instance in live if instance.model == model]
    serving = sum(instance.state is InstanceState.READY for instance in mine)
    coming = tuple(
        _coming(instance, took_s or [first_s], now)
        for instance in mine
        if instance.state in STARTING and instance.ready_at is None
    )
    if not serving and not coming:
        coming = (_left(took_s or [first_s], 0.0),)
    return Capacity(serving=serving, coming=coming)


def _coming(instance: Instance, took_s: Sequence[float], now: datetime) -> Coming:
    left = _left(took_s, (now - instance.requested_at).total_seconds())
    start = instance.expected_start_at
    if start is None or instance.started_at is not None:
        return left
    # the scheduler's own estimate: a bound from below, since others may still overtake
    start_s = (start - now).total_seconds()
    return Coming(p50_s=max(left.p50_s, start_s), p90_s=max(left.p90_s, start_s))


def _left(took_s: Sequence[float], age_s: float) -> Coming:
    """Return what is left to wait after *age_s*, by those that took longer."""
    longer = [seconds - age_s for seconds in took_s if seconds > age_s]
    if not longer:
        # nobody waited so long: what has lasted is expected to last as long again
        return Coming(p50_s=age_s / 2, p90_s=_SLOWER * age_s)
    middle = longer[len(longer) // 2]
    if len(longer) < _ENOUGH:
        return Coming(p50_s=middle, p90_s=_SLOWER * longer[-1])
    return Coming(p50_s=middle, p90_s=longer[int(0.9 * len(longer))])
