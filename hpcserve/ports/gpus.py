"""The GPUs of the node."""

from __future__ import annotations

from typing import Protocol

from hpcserve.domain.load import GpuReading


class Gpus(Protocol):
    """Reads the GPUs that this process may see."""

    def read(self) -> GpuReading:
        """Return one reading for each GPU, or why there is none."""
        ...
