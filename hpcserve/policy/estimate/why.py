"""Why no more instances work on a batch: one sentence for its owner."""

from __future__ import annotations

from collections.abc import Sequence

from hpcserve.domain.instance import STARTING, Instance, InstanceState
from hpcserve.domain.model import Model


def why_not_more(
    model: Model,
    live: Sequence[Instance],
    *,
    trouble: str,
    closed: str,
    in_time: bool | None,
    wanted: str,
) -> str:
    """Return what holds further instances back.

    Args:
        model: the batch's.
        live: instances of this model that are not ENDED.
        trouble: what the controller says of the model, when faults hold it back; else empty.
        closed: why the site is closed; empty: it is open.
        in_time: whether the estimate is before the deadline; None: there is no estimate.
        wanted: what the scaling policy wants, and why; empty: it has not decided yet.

    """
    if closed:
        return f"the site is closed: {closed}"
    if trouble:
        return trouble
    if starting := [i for i in live if i.state in STARTING]:
        return "; ".join(_start(instance) for instance in starting)
    serving = sum(i.state is InstanceState.READY for i in live)
    why = (
        f"the scaling policy wants {wanted}" if wanted else "the controller has asked for none yet"
    )
    if len(live) >= model.max_instances:
        why = f"the catalog allows {model.max_instances} of {model.name}"
    elif serving and in_time:
        why = f"{serving} will be done in time"
    return why


def _start(instance: Instance) -> str:
    match instance.state:
        case InstanceState.REQUESTED:
            return f"{instance.id} is being submitted"
        case InstanceState.QUEUED:
            why = f" ({instance.job_reason})" if instance.job_reason else ""
            at = instance.expected_start_at
            start = f", expected to start at {at:%H:%M} UTC" if at is not None else ""
            return f"{instance.id} waits in the queue of Slurm{why}{start}"
        case _:
            return f"{instance.id} loads the model"
