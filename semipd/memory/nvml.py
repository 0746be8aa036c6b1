"""Asks the NVIDIA driver what there is, through NVML and ctypes: without torch, and without opening the device."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU of this machine."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]
    uuid: str = ""
    """The form that CUDA_VISIBLE_DEVICES takes."""
    cuda_cores: int | None = None
    """CUDA cores of all multiprocessors together; None: the driver doesn't say."""
    clock_hz: float | None = None
    """The highest clock of the multiprocessors; None: the driver doesn't say."""
    memory_bytes_per_s: float | None = None
    """The memory's bandwidth; None: the driver doesn't say."""

    @property
    def sms(self) -> int | None:
        """The number of streaming multiprocessors; None: unknown."""
        return None if self.cuda_cores is None else self.cuda_cores // cores_per_sm(self.capability)


def cores_per_sm(capability: tuple[int, int]) -> int:
    """Returns the CUDA cores of one multiprocessor (CUDA C++ Programming Guide, "Compute Capabilities")."""
    return 64 if capability in ((7, 0), (7, 5), (8, 0)) else 128


@dataclass(frozen=True, slots=True)
class Driver:
    """The NVIDIA driver, and the GPUs that it knows."""

    version: str | None
    """None: no driver."""
    cuda: tuple[int, int] | None
    """The newest CUDA that it supports."""
    gpus: tuple[Gpu, ...]
    """All GPUs of the machine, in the order of their PCI bus."""
    problem: str = ""
    """The driver's message where it is there and doesn't work."""


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


CLOCK_SM, CLOCK_MEMORY = 1, 2
"""nvmlClockType_t."""
TRANSFERS_PER_CLOCK = 2
"""Memory moves this many bits a clock and pin, as NVML counts clocks: HBM and GDDR alike."""


class NvmlError(Exception):
    """NVML refused a call. The message is its own."""


class Nvml:
    """The part of NVML that is needed. Raises OSError where there is no driver, NvmlError where it doesn't work."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libnvidia-ml.so.1")

    def call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            self._library.nvmlErrorString.restype = ctypes.c_char_p
            raise NvmlError(self._library.nvmlErrorString(code).decode())

    def text(self, name: str, *arguments: object) -> str:
        buffer = ctypes.create_string_buffer(96)
        self.call(name, *arguments, buffer, len(buffer))
        return buffer.value.decode()

    def cuda(self) -> tuple[int, int]:
        found = ctypes.c_int()
        self.call("nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(found))
        return found.value // 1000, found.value % 1000 // 10

    def gpus(self) -> tuple[Gpu, ...]:
        count = ctypes.c_uint()
        self.call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        return tuple(self._gpu(index) for index in range(count.value))

    def _gpu(self, index: int) -> Gpu:
        handle, memory = ctypes.c_void_p(), _Memory()
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle))
        self.call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
        self.call("nvmlDeviceGetCudaComputeCapability", handle, ctypes.byref(major), ctypes.byref(minor))
        return Gpu(
            self.text("nvmlDeviceGetName", handle),
            memory.total,
            (major.value, minor.value),
            self.text("nvmlDeviceGetUUID", handle),
            *self._speeds(handle),
        )

    def _speeds(self, handle: ctypes.c_void_p) -> tuple[int | None, float | None, float | None]:
        """Returns CUDA cores, clock in Hz and memory bandwidth in bytes a second; None where the driver doesn't say."""
        cores = self._number("nvmlDeviceGetNumGpuCores", handle)
        clock_mhz = self._number("nvmlDeviceGetMaxClockInfo", handle, CLOCK_SM)
        memory_mhz = self._number("nvmlDeviceGetMaxClockInfo", handle, CLOCK_MEMORY)
        bus_bits = self._number("nvmlDeviceGetMemoryBusWidth", handle)
        bandwidth = TRANSFERS_PER_CLOCK * memory_mhz * 1e6 * bus_bits / 8 if memory_mhz and bus_bits else None
        return cores or None, clock_mhz * 1e6 if clock_mhz else None, bandwidth

    def _number(self, name: str, *arguments: object) -> int | None:
        """Returns a number that not every driver or device has; None: this one has not."""
        found = ctypes.c_uint()
        try:
            self.call(name, *arguments, ctypes.byref(found))
        except (NvmlError, AttributeError):
            return None
        return found.value


def survey_driver(load: Callable[[], Nvml] = Nvml) -> Driver:
    """Returns what is there. It raises nothing."""
    version = None
    try:
        nvml = load()
        nvml.call("nvmlInit_v2")
        try:
            version = nvml.text("nvmlSystemGetDriverVersion")
            return Driver(version, nvml.cuda(), nvml.gpus())
        finally:
            nvml.call("nvmlShutdown")
    except OSError:
        return Driver(None, None, ())
    except NvmlError as error:
        return Driver(version, None, (), str(error))


def visible(gpus: tuple[Gpu, ...], setting: str | None) -> tuple[Gpu, ...]:
    """Returns the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order. `setting` None: the variable is not set.

    As in CUDA, the first that can't be found hides those after it.
    """
    if setting is None:
        return gpus
    found: list[Gpu] = []
    for part in (p.strip() for p in setting.split(",")):
        if part.isdecimal() and int(part) < len(gpus):
            found.append(gpus[int(part)])
            continue
        named = [g for g in gpus if part.startswith("GPU-") and g.uuid.startswith(part)]
        if len(named) != 1:
            break
        found.append(named[0])
    return tuple(found)
