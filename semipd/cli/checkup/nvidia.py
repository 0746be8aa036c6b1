"""GPUs and what divides them: the driver through NVML, MPS, green contexts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from semipd.cli.checkup.finding import Finding, State
from semipd.coordinator.devices import GREEN_CONTEXTS, Choice, ChosenDevice
from semipd.coordinator.mps_guard import MPS_CONTROL
from semipd.memory.nvml import Gpu, Nvml, survey_driver

WITHOUT_GPU = "not needed without a GPU"


@dataclass(frozen=True, slots=True)
class Nvidia:
    driver: str | None
    """Its version; None: no driver."""
    cuda: tuple[int, int] | None
    """The newest CUDA that the driver supports."""
    gpus: tuple[Gpu, ...]
    mps_control: str | None
    """Path of the MPS daemon's program; None: it is absent."""
    mps_running: bool
    problem: str = ""
    """The driver's own words, where it is installed and does not work."""


def survey_nvidia(load: Callable[[], Nvml] = Nvml) -> Nvidia:
    seen = survey_driver(load)
    return Nvidia(seen.version, seen.cuda, seen.gpus, shutil.which(MPS_CONTROL), mps_is_running(), seen.problem)


def mps_is_running(proc: Path = Path("/proc")) -> bool:
    """Returns whether any process of this machine is an MPS control daemon."""
    for command in proc.glob("[0-9]*/cmdline"):
        try:
            program = command.read_bytes().split(b"\0", 1)[0]
        except OSError:  # it has just ended
            continue
        if program.endswith(MPS_CONTROL.encode()):
            return True
    return False


def check_gpu(seen: Nvidia, device: ChosenDevice) -> Finding:
    if device.kind == "cuda":
        return Finding("GPU", State.GOOD, _names(seen.gpus), "the server computes on it")
    value = seen.problem or _names(seen.gpus) or "none"
    consequence = f"the server computes on the CPU: {device.why}" if seen.gpus else "the server computes on the CPU"
    return Finding("GPU", State.LESS, value, "see nvidia-smi; " + consequence if seen.problem else consequence)


def _names(gpus: tuple[Gpu, ...]) -> str:
    names = [f"{g.name}, {g.memory_bytes / 2**30:.0f} GiB, sm_{g.capability[0]}{g.capability[1]}" for g in gpus]
    return f"{len(names)} x {names[0]}" if len(set(names)) == 1 and len(names) > 1 else "; ".join(names)


def check_partition(device: ChosenDevice, backend: Choice) -> Finding:
    """Finds what `--partition auto` chooses, and why."""
    less = backend.degraded or backend.name == "none"
    return Finding("partition", State.LESS if less else State.GOOD, f"{backend.name}, on {device}", backend.why)


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
