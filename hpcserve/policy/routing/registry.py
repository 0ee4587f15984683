"""Every routing policy by the name that the configuration uses (`[gateway] router`)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from hpcserve.errors import ConfigError
from hpcserve.policy.routing.affinity import affinity
from hpcserve.policy.routing.least_loaded import least_loaded
from hpcserve.policy.routing.packing import packing
from hpcserve.policy.routing.round_robin import round_robin
from hpcserve.policy.routing.seat import Policy
from hpcserve.policy.routing.slo_headroom import slo_headroom

POLICIES: Mapping[str, Policy] = {
    "least_loaded": least_loaded,
    "packing": packing,
    "affinity": affinity,
    "slo_headroom": slo_headroom,
    "round_robin": round_robin,
}


def policy(name: str) -> Policy:
    """Return the policy called *name*.

    Raises:
        ConfigError: there is none.

    """
    found = POLICIES.get(name)
    if found is None:
        near = difflib.get_close_matches(name, POLICIES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(POLICIES)}."
        raise ConfigError(f"[gateway] router: there is no policy `{name}`; {hint}")
    return found
