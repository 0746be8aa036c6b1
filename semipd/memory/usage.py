"""Asks the driver how much of a GPU's memory is in use, and by which processes: without torch and without a context."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from semipd.memory.nvml import Nvml

_MOST_PROCESSES = 512
_NOT_TOLD = 2**64 - 1
"""NVML's value NVML_VALUE_NOT_AVAILABLE."""


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """Memory of a GPU in bytes."""

    total: int
    reserved: int
    """Taken by the driver and the firmware, whatever computes."""
    used: int
    """Taken by all processes."""
    processes: Mapping[int, int | None]
    """Bytes by process id; None where the driver doesn't tell. Memory that a process has mapped from another (CUDA IPC)
    counts as the other's. A container may see no process, or ids of the machine outside."""


class _MemoryV2(ctypes.Structure):
    """NVML's structure nvmlMemory_v2_t."""

    _fields_ = (
        ("version", ctypes.c_uint),
        ("total", ctypes.c_ulonglong),
        ("reserved", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class _Process(ctypes.Structure):
    """NVML's structure nvmlProcessInfo_t, as nvmlDeviceGetComputeRunningProcesses_v3 fills it."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


def device_usage(uuid: str = "", load: Callable[[], Nvml] = Nvml) -> DeviceUsage:
    """Returns the memory use of the GPU of that UUID, or of the machine's first GPU.

    Raises OSError where there is no driver, NvmlError where it doesn't answer.
    """
    nvml = load()
    nvml.call("nvmlInit_v2")
    try:
        card = ctypes.c_void_p()
        if uuid:
            nvml.call("nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(card))
        else:
            nvml.call("nvmlDeviceGetHandleByIndex_v2", 0, ctypes.byref(card))
        memory = _MemoryV2(version=ctypes.sizeof(_MemoryV2) | 2 << 24)
        nvml.call("nvmlDeviceGetMemoryInfo_v2", card, ctypes.byref(memory))
        return DeviceUsage(memory.total, memory.reserved, memory.used, _processes(nvml, card))
    finally:
        nvml.call("nvmlShutdown")


def _processes(nvml: Nvml, card: ctypes.c_void_p) -> dict[int, int | None]:
    count = ctypes.c_uint(_MOST_PROCESSES)
    found = (_Process * _MOST_PROCESSES)()
    nvml.call("nvmlDeviceGetComputeRunningProcesses_v3", card, ctypes.byref(count), found)
    return {p.pid: None if p.used == _NOT_TOLD else p.used for p in found[: count.value]}
