"""The scaling policies by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hpcserve.config import Scaling
from hpcserve.policy.scaling.demand import DemandScaler
from hpcserve.policy.scaling.target import Scaler

SCALERS: Mapping[str, Callable[[Scaling], Scaler]] = {"demand": DemandScaler}
