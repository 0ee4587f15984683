"""The controller's whole decision: a fleet in, a plan out. Pure; the simulator calls it too."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from hpcserve.config import Config
from hpcserve.domain.fleet import Fleet
from hpcserve.domain.plan import Plan, Record
from hpcserve.policy.close import close
from hpcserve.policy.reconcile import reconcile
from hpcserve.policy.scaling.target import Scaler
from hpcserve.policy.transcribe import transcribe


def decide(fleet: Fleet, scaler: Scaler, config: Config, now: datetime) -> Plan:
    """Return the facts to write down, then what to do about the fleet as it then is."""
    records = transcribe(fleet.instances, fleet.jobs, fleet.accounted, config.controller, now)
    known = after(fleet, records)
    if known.closed_because is not None:
        return (*records, *close(known, known.closed_because))
    targets = scaler.targets(known, now)
    acts = reconcile(known, targets, controller=config.controller, scaling=config.scaling, now=now)
    return (*records, *acts)


def after(fleet: Fleet, records: tuple[Record, ...]) -> Fleet:
    """Return the fleet with *records* written down."""
    changed = {record.instance.id: record.instance for record in records}
    instances = tuple(changed.get(instance.id, instance) for instance in fleet.instances)
    gone = tuple(instance for instance in instances if not instance.is_live)
    return replace(
        fleet,
        instances=tuple(instance for instance in instances if instance.is_live),
        ended=(*reversed(gone), *fleet.ended),
    )
