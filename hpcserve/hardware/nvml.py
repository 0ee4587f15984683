"""Read the GPUs through NVML, as nvidia-smi does.

Rules: no GPU is a value with a reason, since a CPU node is an ordinary node. A GPU that cannot be
read is left out, and one figure that it does not have is None; neither hides the others. Only the
GPUs of CUDA_VISIBLE_DEVICES are read: on a shared node the rest belong to other people's jobs.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from hpcserve.domain.load import GpuLoad, GpuReading, GpusAbsent

_MILLIWATTS_PER_WATT = 1000


class NvmlGpus:
    """The port Gpus on nvidia-ml-py."""

    def __init__(self, nvml: ModuleType, *, visible_devices: str | None) -> None:
        """Take the module `pynvml` and the value of CUDA_VISIBLE_DEVICES, None when unset."""
        self._nvml: Any = nvml
        self._visible = visible_devices
        self._initialized = False

    def read(self) -> GpuReading:
        """Return one reading for each GPU that this job may use, or why there is none."""
        try:
            if not self._initialized:
                self._nvml.nvmlInit()
                self._initialized = True
            handles = self._handles()
        except self._nvml.NVMLError as error:
            return GpusAbsent(reason=f"NVML: {error}")
        if not handles:
            return GpusAbsent(reason=self._why_none())
        readings = [self._read(handle) for handle in handles]
        loads = tuple(reading for reading in readings if isinstance(reading, GpuLoad))
        if not loads:
            return GpusAbsent(reason=f"NVML: {readings[0]}")
        return loads

    def _handles(self) -> list[object]:
        """Return the handles of the visible GPUs that exist."""
        if self._visible is None:
            names = [str(index) for index in range(self._nvml.nvmlDeviceGetCount())]
        else:
            names = [name.strip() for name in self._visible.split(",") if name.strip()]
        handles: list[object] = []
        for name in names:
            try:
                handles.append(self._handle(name))
            except self._nvml.NVMLError:
                # CUDA ignores what it does not know, and everything after it.
                break
        return handles

    def _handle(self, name: str) -> object:
        if name.isdecimal():
            return self._nvml.nvmlDeviceGetHandleByIndex(int(name))
        return self._nvml.nvmlDeviceGetHandleByUUID(name)

    def _why_none(self) -> str:
        if self._visible is None:
            return "NVML: the node has no GPU"
        return f"no GPU of CUDA_VISIBLE_DEVICES={self._visible!r} exists here"

    def _read(self, handle: object) -> GpuLoad | str:
        """Return the load, or why this GPU cannot be read."""
        nvml = self._nvml
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            return GpuLoad(
                index=nvml.nvmlDeviceGetIndex(handle),
                uuid=nvml.nvmlDeviceGetUUID(handle),
                name=nvml.nvmlDeviceGetName(handle),
                memory_used_bytes=memory.used,
                memory_total_bytes=memory.total,
                utilization_ratio=nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
                power_w=self._power_w(handle),
                temperature_c=self._temperature_c(handle),
            )
        except nvml.NVMLError as error:
            return str(error)

    def _power_w(self, handle: object) -> float | None:
        try:
            return float(self._nvml.nvmlDeviceGetPowerUsage(handle)) / _MILLIWATTS_PER_WATT
        except self._nvml.NVMLError:
            return None

    def _temperature_c(self, handle: object) -> float | None:
        sensor = self._nvml.NVML_TEMPERATURE_GPU
        try:
            return float(self._nvml.nvmlDeviceGetTemperature(handle, sensor))
        except self._nvml.NVMLError:
            return None
