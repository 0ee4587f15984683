"""Baseline: always as many instances as the catalog allows, whatever the load."""

from __future__ import annotations

from datetime import datetime
from typing import final

from hpcserve.config import Scaling
from hpcserve.domain.fleet import Fleet
from hpcserve.domain.instance import Role
from hpcserve.policy.scaling.target import Target


@final
class StaticScaler:
    """Static N, with N the catalog's `max_instances`."""

    def __init__(self, settings: Scaling) -> None:
        """Take the `[scaling]` section, of which it needs nothing."""

    def targets(self, fleet: Fleet, now: datetime) -> tuple[Target, ...]:  # noqa: ARG002 - a Scaler
        """Return one MIXED target a model."""
        return tuple(
            Target(
                model=model.name,
                role=Role.MIXED,
                count=model.max_instances,
                reason=f"{model.max_instances} instances are kept whatever the load",
            )
            for model in fleet.models.values()
        )
