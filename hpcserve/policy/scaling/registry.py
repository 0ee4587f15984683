"""Every scaling policy by the name that the configuration uses (`[scaling] policy`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from hpcserve.config import Scaling
from hpcserve.policy.scaling.backpressure import BackpressureScaler
from hpcserve.policy.scaling.chiron import ChironScaler
from hpcserve.policy.scaling.demand import DemandScaler
from hpcserve.policy.scaling.enova import EnovaScaler
from hpcserve.policy.scaling.freeness import FreenessScaler
from hpcserve.policy.scaling.queue_length import QueueLengthScaler
from hpcserve.policy.scaling.static import StaticScaler
from hpcserve.policy.scaling.target import Scaler

SCALERS: Mapping[str, Callable[[Scaling], Scaler]] = {
    "demand": DemandScaler,
    "backpressure": BackpressureScaler,
    "chiron": ChironScaler,
    "queue_length": QueueLengthScaler,
    "freeness": FreenessScaler,
    # of a grid, the best attainment in Chiron's experiment with the fewest GPU-hours
    "freeness_tuned": partial(FreenessScaler, low=30.0, high=150.0),
    "enova": EnovaScaler,
    "static": StaticScaler,
}
