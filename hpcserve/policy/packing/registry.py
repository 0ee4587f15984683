"""Every packing policy by its name in the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from hpcserve.policy.packing import edf
from hpcserve.policy.packing.view import Nothing, PackingSettings, PackingView, Pick

Packer = Callable[[PackingView, PackingSettings, datetime], Pick | Nothing]

PACKERS: Mapping[str, Packer] = {
    "edf": edf.pack,
}
