from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pynvml
import pytest

from hpcserve.domain.load import GpuLoad, GpusAbsent
from hpcserve.hardware.nvml import NvmlGpus


class NvmlError(Exception):
    """What pynvml raises."""


@dataclass
class StandIn:
    """The part of the module `pynvml` that is used, over so many GPUs."""

    gpus: int = 4
    #: GPUs that answer nothing, and the functions that no GPU has
    broken: set[int] = field(default_factory=set)
    unsupported: set[str] = field(default_factory=set)
    driver: bool = True
    NVMLError: type[Exception] = NvmlError
    NVML_TEMPERATURE_GPU: int = 0

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's own name
        if not self.driver:
            raise NvmlError("NVML Shared Library Not Found")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 - NVML's own name
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802 - NVML's own name
        if not 0 <= index < self.gpus:
            raise NvmlError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802 - NVML's own name
        if not uuid.startswith("GPU-"):
            raise NvmlError("Invalid Argument")
        return self.nvmlDeviceGetHandleByIndex(int(uuid.removeprefix("GPU-")))

    def __getattr__(self, name: str):
        values = {
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=3 << 30, total=80 << 30),
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=75),
            "nvmlDeviceGetName": "H100",
            "nvmlDeviceGetPowerUsage": 350_500,
            "nvmlDeviceGetTemperature": 61,
        }

        def call(handle: int, *_: object) -> object:
            if handle in self.broken:
                raise NvmlError("GPU is lost")
            if name in self.unsupported:
                raise NvmlError("Not Supported")
            if name == "nvmlDeviceGetIndex":
                return handle
            return f"GPU-{handle}" if name == "nvmlDeviceGetUUID" else values[name]

        return call


def read(nvml: StandIn, visible: str | None = None):
    return NvmlGpus(nvml, visible_devices=visible).read()


def test_every_gpu_of_a_node_is_read() -> None:
    loads = read(StandIn(gpus=2))
    assert loads[0] == GpuLoad(
        index=0,
        uuid="GPU-0",
        name="H100",
        memory_used_bytes=3 << 30,
        memory_total_bytes=80 << 30,
        utilization_ratio=0.75,
        power_w=350.5,
        temperature_c=61.0,
    )
    assert [load.index for load in loads] == [0, 1]


@pytest.mark.parametrize(
    ("visible", "indices"),
    [("2", [2]), ("3,1", [3, 1]), ("GPU-2,GPU-0", [2, 0]), (" 1 , 2 ", [1, 2]), ("1,9,2", [1])],
)
def test_only_the_gpus_of_this_job_are_read(visible: str, indices: list[int]) -> None:
    assert [load.index for load in read(StandIn(), visible)] == indices


@pytest.mark.parametrize("visible", ["", "9", "-1", "NoDevFiles"])
def test_a_job_without_gpus_says_so(visible: str) -> None:
    reading = read(StandIn(), visible)
    assert isinstance(reading, GpusAbsent)
    assert repr(visible) in reading.reason


def test_a_node_without_driver_or_gpu_says_why() -> None:
    assert read(StandIn(driver=False)) == GpusAbsent(reason="NVML: NVML Shared Library Not Found")
    assert read(StandIn(gpus=0)) == GpusAbsent(reason="NVML: the node has no GPU")


def test_a_driver_that_appears_later_is_found() -> None:
    nvml = StandIn(driver=False)
    gpus = NvmlGpus(nvml, visible_devices=None)
    assert isinstance(gpus.read(), GpusAbsent)
    nvml.driver = True
    assert len(gpus.read()) == 4


def test_a_broken_gpu_hides_no_other() -> None:
    assert [load.index for load in read(StandIn(broken={1}))] == [0, 2, 3]
    assert read(StandIn(gpus=1, broken={0})) == GpusAbsent(reason="NVML: GPU is lost")


def test_a_figure_that_a_gpu_does_not_have_is_none() -> None:
    unsupported = {"nvmlDeviceGetPowerUsage", "nvmlDeviceGetTemperature"}
    (load,) = read(StandIn(gpus=1, unsupported=unsupported))
    assert (load.power_w, load.temperature_c) == (None, None)


def test_the_real_module_gives_readings_or_a_reason() -> None:
    match NvmlGpus(pynvml, visible_devices=None).read():
        case GpusAbsent(reason=reason):
            assert reason.startswith("NVML: ")
        case loads:
            assert all(load.memory_total_bytes > 0 for load in loads)
