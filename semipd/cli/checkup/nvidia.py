"""GPUs and what divides them: the driver through NVML, MPS, green contexts."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from semipd.cli.checkup.finding import Finding, State

GREEN_CONTEXTS = (12, 4)
"""The CUDA that a driver must support."""

MPS_CONTROL = "nvidia-cuda-mps-control"

WITHOUT_GPU = "not needed without a GPU"


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    memory_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Nvidia:
    driver: str | None
    """Its version; None: no driver."""
    cuda: tuple[int, int] | None
    """The newest CUDA that the driver supports."""
    gpus: tuple[Gpu, ...]
    mps_control: str | None
    """Where the MPS daemon's program is."""
    mps_running: bool
    problem: str = ""
    """What the driver said where it is there and doesn't work."""


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class NvmlError(Exception):
    """What NVML says, in its own words."""


class Nvml:
    """As much of NVML as is needed. Raises OSError where there is no driver, NvmlError where it doesn't work."""

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
        return Gpu(self.text("nvmlDeviceGetName", handle), memory.total, (major.value, minor.value))


def survey_nvidia(load: Callable[[], Nvml] = Nvml) -> Nvidia:
    control = shutil.which(MPS_CONTROL)
    running = mps_is_running()
    driver = None
    try:
        nvml = load()
        nvml.call("nvmlInit_v2")
        try:
            driver = nvml.text("nvmlSystemGetDriverVersion")
            return Nvidia(driver, nvml.cuda(), nvml.gpus(), control, running)
        finally:
            nvml.call("nvmlShutdown")
    except OSError:
        return Nvidia(None, None, (), control, running)
    except NvmlError as error:
        return Nvidia(driver, None, (), control, running, str(error))


def mps_is_running(proc: Path = Path("/proc")) -> bool:
    """Whether any process of this machine is an MPS control daemon."""
    for command in proc.glob("[0-9]*/cmdline"):
        try:
            program = command.read_bytes().split(b"\0", 1)[0]
        except OSError:  # it has just ended
            continue
        if program.endswith(MPS_CONTROL.encode()):
            return True
    return False


def check_gpu(seen: Nvidia, cpus: int) -> Finding:
    cpu_back_end = "the CPU back end, partition `cores`" if cpus > 1 else "the CPU back end, partition `none`"
    if seen.problem:
        return Finding("GPU", State.LESS, seen.problem, f"the driver doesn't work (see nvidia-smi): {cpu_back_end}")
    if not seen.gpus:
        return Finding("GPU", State.LESS, "none", cpu_back_end)
    names = [f"{g.name}, {g.memory_bytes / 2**30:.0f} GiB, sm_{g.capability[0]}{g.capability[1]}" for g in seen.gpus]
    value = f"{len(names)} x {names[0]}" if len(set(names)) == 1 and len(names) > 1 else "; ".join(names)
    return Finding("GPU", State.LESS, value, f"not used by this version of semipd: {cpu_back_end}")


def check_driver(seen: Nvidia) -> Finding:
    if seen.driver is None:
        return Finding("driver", State.NEEDLESS, "none", WITHOUT_GPU)
    if seen.cuda is None:
        return Finding("driver", State.LESS, seen.driver, "doesn't say which CUDA it supports: update it")
    value = f"{seen.driver}, CUDA {seen.cuda[0]}.{seen.cuda[1]}"
    if seen.cuda < GREEN_CONTEXTS:
        return Finding("driver", State.LESS, value, "no green contexts before CUDA 12.4: update it")
    return Finding("driver", State.GOOD, value, "new enough for green contexts")


def check_mps(seen: Nvidia) -> Finding:
    if not seen.gpus:
        return Finding("MPS", State.NEEDLESS, "running" if seen.mps_running else "none", WITHOUT_GPU)
    if seen.mps_running:
        return Finding("MPS", State.GOOD, "a daemon is running", "two processes can compute on the GPU at once")
    if seen.mps_control:
        return Finding("MPS", State.GOOD, seen.mps_control, "there, not running; a server can start its own")
    consequence = "two processes would take turns on the GPU: install the driver's MPS"
    return Finding("MPS", State.LESS, f"no {MPS_CONTROL} on PATH", consequence)


def check_green_contexts(seen: Nvidia, cuda_bindings: str | None) -> Finding:
    name = "green contexts"
    if not seen.gpus:
        return Finding(name, State.NEEDLESS, "none", WITHOUT_GPU)
    if seen.cuda is None or seen.cuda < GREEN_CONTEXTS:
        return Finding(name, State.LESS, "the driver has none", "a GPU's share changes only with a new worker: `mps`")
    if cuda_bindings is None:
        return Finding(name, State.LESS, "no cuda-bindings", "partition `green` needs them: pip install 'semipd[cuda]'")
    return Finding(name, State.GOOD, f"cuda-bindings {cuda_bindings}", "a GPU's share can change between two steps")
