"""The instance table: which instances serve which model, observed from the ledger.

Each look at the ledger yields one immutable Snapshot; the hot path only reads the newest. An
instance that is not READY any more is missing in the next one, so it gets no new request at once.
When the ledger does not answer, the last snapshot stays: unknown is not gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf
from types import MappingProxyType

from hpcserve.domain.instance import STARTING, Instance, InstanceState
from hpcserve.domain.model import Model
from hpcserve.policy.routing.fit import Line
from hpcserve.policy.routing.seat import Seat


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a model stands, for people: the most advanced of its instances speaks for it."""

    #: `ready`, an instance's state on the way there, or `cold`
    state: str
    reason: str
    job_id: str | None = None
    job_state: str = ""
    job_reason: str = ""
    #: expected time until it serves, s; None: nobody knows
    eta_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """One model: its seats and its standing. Seats and instances are parallel."""

    name: str
    seats: tuple[Seat, ...]
    instances: tuple[Instance, ...]
    standing: Standing
    #: tokens of prompt and answer together
    context_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All models of the catalog as they were at one look."""

    models: Mapping[str, ModelView]


#: how far on its way an instance is; the furthest speaks for its model
_PROGRESS = {
    state: rank
    for rank, state in enumerate(
        (
            InstanceState.STOPPING,
            InstanceState.DRAINING,
            InstanceState.UNREACHABLE,
            *STARTING,
            InstanceState.READY,
        )
    )
}


def observe(
    catalog: Mapping[str, Model],
    live: Sequence[Instance],
    load_s: Mapping[str, float],
    now: datetime,
    lines: Mapping[str, Line] = MappingProxyType({}),
) -> Snapshot:
    """Return the snapshot of *live* instances.

    Args:
        catalog: all models, by name.
        live: instances that are not ENDED.
        load_s: last observed time from an allocation's start to READY, by model.
        now: for headroom and ETA.
        lines: fitted inter-token latency, by model.

    """
    by_model: dict[str, list[Instance]] = {name: [] for name in catalog}
    for instance in live:
        if instance.model in by_model:
            by_model[instance.model].append(instance)
    return Snapshot(
        models={
            name: _view(catalog[name], instances, load_s.get(name), now, lines.get(name))
            for name, instances in by_model.items()
        }
    )


def _view(
    model: Model,
    instances: Sequence[Instance],
    load_s: float | None,
    now: datetime,
    line: Line | None,
) -> ModelView:
    serving = tuple(i for i in instances if i.state is InstanceState.READY and i.base_url)
    return ModelView(
        name=model.name,
        seats=tuple(_seat(model, instance, now, line) for instance in serving),
        instances=serving,
        standing=_standing(instances, load_s, now),
        context_tokens=model.max_model_len,
    )


def _seat(model: Model, instance: Instance, now: datetime, line: Line | None) -> Seat:
    ends_at = instance.ends_at
    return Seat(
        instance_id=instance.id,
        headroom_s=inf if ends_at is None else (ends_at - now).total_seconds(),
        slots=max(1, model.max_num_seqs),
        itl_base_ms=line.base_ms if line else 0.0,
        itl_per_request_ms=line.per_request_ms if line else 0.0,
        itl_slo_ms=model.itl_slo_ms,
    )


def _standing(instances: Sequence[Instance], load_s: float | None, now: datetime) -> Standing:
    if not instances:
        return Standing(state="cold", reason="no instance runs; one has been asked for")
    first = max(instances, key=lambda instance: _PROGRESS[instance.state])
    return Standing(
        state=first.state.value,
        reason=first.message or first.reason,
        job_id=first.job_id,
        job_state=first.job_state,
        job_reason=first.job_reason,
        eta_s=_eta_s(first, load_s, now),
    )


def _eta_s(instance: Instance, load_s: float | None, now: datetime) -> float | None:
    """Return s until *instance* serves: the scheduler's guess of its start, then a usual load."""
    if instance.state is InstanceState.READY:
        return 0.0
    if load_s is None:
        return None
    if instance.started_at is not None:
        return max(0.0, load_s - (now - instance.started_at).total_seconds())
    if instance.expected_start_at is None:
        return None
    return max(0.0, (instance.expected_start_at - now).total_seconds()) + load_s
