"""Memory on a GPU as NVML tells it, with a library of its shape in NVML's place."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from semipd.memory.nvml import Nvml, NvmlError
from semipd.memory.usage import device_usage


class Library(Nvml):
    """Answers as the functions of libnvidia-ml do: into what it is given."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.broken = ""

    def call(self, name: str, *arguments: Any) -> None:
        self.asked.append(name)
        if name == self.broken:
            raise NvmlError("GPU is lost")
        if name == "nvmlDeviceGetMemoryInfo_v2":
            memory = arguments[1]._obj
            assert memory.version == 0x0200_0028, "as nvml.h has it"
            memory.total, memory.reserved, memory.free, memory.used = 100, 5, 25, 70
        elif name == "nvmlDeviceGetComputeRunningProcesses_v3":
            count, found = arguments[1]._obj, arguments[2]
            assert ctypes.sizeof(found[0]) == 24, "as nvml.h has it"
            assert count.value == len(found)
            count.value = 2
            found[0].pid, found[0].used = 11, 60
            found[1].pid, found[1].used = 12, 2**64 - 1


def test_used_bytes_in_all_and_by_process() -> None:
    usage = device_usage(load=Library)
    assert (usage.total, usage.reserved, usage.used) == (100, 5, 70)
    assert usage.processes == {11: 60, 12: None}, "None: not told"


def test_one_gpu_of_several_goes_by_its_uuid() -> None:
    library = Library()
    device_usage("GPU-1234", load=lambda: library)
    assert "nvmlDeviceGetHandleByUUID" in library.asked
    assert "nvmlDeviceGetHandleByIndex_v2" not in library.asked


def test_nvml_is_shut_down_after_an_error() -> None:
    library = Library()
    library.broken = "nvmlDeviceGetMemoryInfo_v2"
    with pytest.raises(NvmlError, match="GPU is lost"):
        device_usage(load=lambda: library)
    assert library.asked[-1] == "nvmlShutdown"
