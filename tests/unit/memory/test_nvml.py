"""A GPU's data are read from NVML, here through a library that stands in for the driver's."""

from __future__ import annotations

import pytest

from semipd.memory.nvml import CLOCK_MEMORY, CLOCK_SM, Nvml, NvmlError, survey_driver

NUMBERS = {
    ("nvmlDeviceGetNumGpuCores", None): 16_896,
    ("nvmlDeviceGetMaxClockInfo", CLOCK_SM): 1980,
    ("nvmlDeviceGetMaxClockInfo", CLOCK_MEMORY): 3201,
    ("nvmlDeviceGetMemoryBusWidth", None): 6144,
}
"""The numbers of an H200, in NVML's units: cores, MHz, MHz, bits."""


class StandIn(Nvml):
    """A driver with one GPU."""

    def __init__(self) -> None: ...

    def call(self, name: str, *arguments: object) -> None:
        if name == "nvmlDeviceGetCount_v2":
            arguments[0]._obj.value = 1  # type: ignore[attr-defined]
        elif name == "nvmlDeviceGetCudaComputeCapability":
            arguments[1]._obj.value, arguments[2]._obj.value = 9, 0  # type: ignore[attr-defined]
        for (known, kind), number in NUMBERS.items():
            if name == known and kind in (None, arguments[1]):
                arguments[-1]._obj.value = number  # type: ignore[attr-defined]

    def text(self, name: str, *arguments: object) -> str:
        return "NVIDIA H200"


def test_the_rates_of_a_gpu_are_read() -> None:
    (gpu,) = survey_driver(StandIn).gpus
    assert gpu.sms == 132
    assert gpu.clock_hz == 1.98e9
    assert gpu.memory_bytes_per_s == pytest.approx(4.917e12, rel=1e-3)


@pytest.mark.parametrize("kind", [AttributeError, NvmlError])
def test_a_driver_that_does_not_say_them_has_its_gpu_all_the_same(kind: type[Exception]) -> None:
    class Old(StandIn):
        def call(self, name: str, *arguments: object) -> None:
            if name in {known for known, _ in NUMBERS}:
                raise kind("Not Supported")
            super().call(name, *arguments)

    (gpu,) = survey_driver(Old).gpus
    assert (gpu.sms, gpu.clock_hz, gpu.memory_bytes_per_s) == (None, None, None)
    assert gpu.capability == (9, 0)
