"""Every packing policy by the name that the configuration uses (`[batching] packing`)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from datetime import datetime

from hpcserve.errors import ConfigError
from hpcserve.policy.packing import edf
from hpcserve.policy.packing.view import Nothing, PackingSettings, PackingView, Pick

Packer = Callable[[PackingView, PackingSettings, datetime], Pick | Nothing]

PACKERS: Mapping[str, Packer] = {
    "edf": edf.pack,
}


def packer(name: str) -> Packer:
    """Return the policy called *name*.

    Raises:
        ConfigError: there is none.

    """
    found = PACKERS.get(name)
    if found is None:
        near = difflib.get_close_matches(name, PACKERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(PACKERS)}."
        raise ConfigError(f"[batching] packing: there is no policy `{name}`; {hint}")
    return found
