"""Ends everything, because an operator has closed the site (`hpcserve down`). Pure."""

from __future__ import annotations

from hpcserve.domain.fleet import Fleet
from hpcserve.domain.instance import InstanceState
from hpcserve.domain.job import EndReason
from hpcserve.domain.plan import Stop


def close(fleet: Fleet, reason: str) -> tuple[Stop, ...]:
    """Return a stop of each instance that is not on its way out; none without the scheduler."""
    if fleet.jobs is None:
        return ()
    return tuple(
        Stop(instance=instance, ending=EndReason.SCALED_IN, reason=reason)
        for instance in fleet.instances
        if instance.state is not InstanceState.STOPPING
    )
