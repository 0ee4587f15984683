"""Everything that can go wrong in a simulated site, as one frozen structure.

Ratios are 0..1 of the calls or events they name; rates are per hour of simulated time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Nothing goes wrong by default."""

    #: sbatch fails although the scheduler is there; half of these jobs exist all the same
    submit_error_ratio: float = 0.0
    #: the scheduler answers nothing for `outage_s`
    outages_per_hour: float = 0.0
    outage_s: float = 300.0
    #: of a running job
    node_failures_per_hour: float = 0.0
    preemptions_per_hour: float = 0.0
    engine_crashes_per_hour: float = 0.0
    #: an agent's word does not arrive
    word_loss_ratio: float = 0.0
    #: a job starts whose agent is never heard
    mute_ratio: float = 0.0
    #: an engine takes `slow_load_factor` times as long to load
    slow_load_ratio: float = 0.0
    slow_load_factor: float = 5.0
    #: the controller process dies and another takes over
    controller_crashes_per_hour: float = 0.0
    #: no more faults after this second: the time in which everything must come right
    until_s: float = math.inf
