"""The GPUs of this machine."""

from __future__ import annotations

import os

import pynvml

from hpcserve.domain.load import GpusAbsent
from hpcserve.hardware.nvml import NvmlGpus


def open_gpus() -> NvmlGpus:
    """Return the reader of the GPUs that this process may use."""
    return NvmlGpus(pynvml, visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"))


def count_gpus() -> int:
    """Return how many GPUs this process may use."""
    reading = open_gpus().read()
    return 0 if isinstance(reading, GpusAbsent) else len(reading)
