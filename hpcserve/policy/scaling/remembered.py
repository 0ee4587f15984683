"""A scaler whose last answer can be read again, by who explains it to the owners of batches."""

from __future__ import annotations

from datetime import datetime
from typing import final

from hpcserve.domain.fleet import Fleet
from hpcserve.policy.scaling.target import Scaler, Target


@final
class Remembered:
    """Passes another scaler's targets on."""

    def __init__(self, scaler: Scaler) -> None:
        """Take the scaler that decides."""
        self._scaler = scaler
        #: its last answer; empty before the first
        self.last: tuple[Target, ...] = ()

    def targets(self, fleet: Fleet, now: datetime) -> tuple[Target, ...]:
        """Return the other scaler's targets."""
        self.last = self._scaler.targets(fleet, now)
        return self.last
