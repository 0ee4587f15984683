"""Builders of domain objects: every field has a plain value, a test names what matters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hpcserve.domain.fleet import Demand, Fleet
from hpcserve.domain.instance import Instance, InstanceState, Role
from hpcserve.domain.job import JobPhase, JobsView, JobView
from hpcserve.domain.model import Model

#: every test's "now"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def ago(seconds: float) -> datetime:
    """Return a time before NOW."""
    return NOW - timedelta(seconds=seconds)


def ahead(seconds: float) -> datetime:
    """Return a time after NOW."""
    return NOW + timedelta(seconds=seconds)


def a_model(name: str = "m", **fields: object) -> Model:
    """Return a model that may have two instances."""
    return Model(**{"name": name, "weights": "/weights/m", "max_instances": 2, **fields})


def an_instance(
    instance_id: str = "inst-1", state: InstanceState = InstanceState.READY, **fields: object
) -> Instance:
    """Return an instance that has come to *state* without trouble."""
    base = {
        "id": instance_id,
        "token": instance_id,
        "model": "m",
        "role": Role.MIXED,
        "state": state,
        "partition": "gpu",
        "gpus": 1,
        "time_limit_s": 4 * 3600,
        "reason": "a test wants it",
        "requested_at": ago(600),
    }
    order = list(InstanceState)
    if order.index(state) >= order.index(InstanceState.QUEUED):
        base |= {"job_id": f"{instance_id}-job", "submitted_at": ago(590)}
    if state in order[2:]:
        base |= {"started_at": ago(500), "ends_at": ahead(4 * 3600 - 500)}
    if state in order[3:]:
        base |= {"host": "127.0.0.1", "port": 9000, "heard_at": ago(2)}
    if state in order[4:]:
        base |= {"ready_at": ago(400)}
    return Instance(**{**base, **fields})


def a_job(instance: Instance, phase: JobPhase = JobPhase.HELD, **fields: object) -> JobView:
    """Return the scheduler's view of an instance's job."""
    words = {JobPhase.PENDING: "PENDING", JobPhase.HELD: "RUNNING", JobPhase.GONE: "COMPLETED"}
    base = {
        "job_id": instance.job_id or f"{instance.id}-job",
        "token": instance.token,
        "phase": phase,
        "state": words[phase],
        "reason": "None",
        "partition": "gpu",
    }
    return JobView(**{**base, **fields})


def a_view(*jobs: JobView, asked_at: datetime = NOW) -> JobsView:
    """Return an answer of the scheduler."""
    return JobsView(asked_at=asked_at, jobs={job.token: job for job in jobs})


def a_fleet(*instances: Instance, **fields: object) -> Fleet:
    """Return a fleet in which the scheduler runs a job for each live instance."""
    live = tuple(i for i in instances if i.is_live)
    base = {
        "instances": live,
        "ended": tuple(i for i in instances if not i.is_live),
        "jobs": a_view(*(a_job(i) for i in live if i.job_id)),
        "accounted": {},
        "listening_since": ago(7200),
        "partitions": (),
        "models": {"m": a_model()},
        "demand": {},
        "backlog": (),
        "forgiven_at": {},
    }
    return Fleet(**{**base, **fields})


def a_demand(model: str = "m", **fields: object) -> Demand:
    """Return demand that was just there."""
    return Demand(**{"model": model, "asked_at": ago(1), "running": 0, "waiting": 0, **fields})
