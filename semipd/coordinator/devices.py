"""Chooses the device, how the phases divide it and the kind of MPS, each with a reason. Done once, at start."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from semipd.core.errors import ConfigError
from semipd.memory.nvml import Driver, Gpu, survey_driver, visible

CAPABILITY = (8, 0)
"""Compute capability of the oldest GPUs that the kernels run on: Ampere."""
GREEN_CONTEXTS = (12, 4)
"""The CUDA version that the driver must support for green contexts."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
INSTALL = "pip install 'semipd[cuda]'"
INSTALL_TORCH = "pip install 'torch>=2.11' (a CUDA build)"
PACKAGES = {"cupy": ("cupy", INSTALL), "cuda-bindings": ("cuda.bindings", INSTALL), "triton": ("triton", INSTALL_TORCH)}
"""Packages without which nothing computes on a GPU: module, and the command that installs it."""


@dataclass(frozen=True, slots=True)
class ChosenDevice:
    """The device that the server computes on."""

    kind: str
    """cpu or cuda."""
    why: str
    """The reason, for people."""
    gpu: Gpu | None = None
    cuda: tuple[int, int] | None = None
    """The newest CUDA version that the driver supports. None: unknown, or a CPU."""
    pin: str = ""
    """The value of CUDA_VISIBLE_DEVICES for every process, so that all use the same GPU. Empty: there is only one GPU.
    It is a UUID: an MPS daemon numbers the GPUs that it sees anew, and its clients would apply a number a second
    time."""

    def __str__(self) -> str:
        return f"cuda ({self.gpu.name})" if self.gpu else self.kind


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice of a partition back end, or of a kind of MPS."""

    name: str
    why: str
    """The reason, for people."""
    degraded: bool = False
    """True if there is a GPU that can't be used as well as it could be: worth a warning."""


def choose_device(
    asked: str, driver: Driver | None = None, missing: Mapping[str, str] | None = None, setting: str | None = None
) -> ChosenDevice:
    """Returns the device for `--device`. Raises ConfigError where `cuda` is asked for and can't be had.

    `missing` are packages that are not installed, with the commands that install them; `setting` is the value of
    CUDA_VISIBLE_DEVICES. None, also for `driver`: it is looked up here.
    """
    if asked == "cpu":
        return ChosenDevice("cpu", "asked for")
    driver = survey_driver() if driver is None else driver
    setting = os.environ.get(VISIBLE) if setting is None else setting
    trouble = _no_gpu(driver, setting) or _not_installed(missing_packages() if missing is None else missing)
    if not trouble:
        gpu = visible(driver.gpus, setting)[0]
        pin = gpu.uuid if setting is not None or len(driver.gpus) > 1 else ""
        return ChosenDevice("cuda", "asked for" if asked == "cuda" else "there is a GPU", gpu, driver.cuda, pin)
    if asked == "cuda":
        raise ConfigError(f"--device cuda: {trouble}")
    return ChosenDevice("cpu", trouble)


def _no_gpu(driver: Driver, setting: str | None) -> str:
    if driver.problem:
        return f"the NVIDIA driver doesn't work: {driver.problem}"
    if not driver.gpus:
        return "no NVIDIA GPU is there"
    seen = visible(driver.gpus, setting)
    if not seen:
        return f"{VISIBLE}={setting!r} hides every GPU"
    if seen[0].capability < CAPABILITY:
        major, minor = seen[0].capability
        return f"{seen[0].name} has compute capability {major}.{minor}, and {CAPABILITY[0]}.{CAPABILITY[1]} is needed"
    return ""


def _not_installed(missing: Mapping[str, str]) -> str:
    return f"not installed: {', '.join(missing)}; {' and '.join(dict.fromkeys(missing.values()))}" if missing else ""


def missing_packages() -> dict[str, str]:
    """Returns the packages that a GPU needs and that are not installed, each with the command that installs it. Imports
    nothing heavy."""
    lacking = {name: command for name, (module, command) in PACKAGES.items() if not _there(module)}
    if torch_cuda() is None:
        lacking["a CUDA build of torch"] = INSTALL_TORCH
    return lacking


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even its parent
        return False


def torch_cuda() -> str | None:
    """Returns the CUDA version that torch is built for. None: a CPU build, or no torch.

    It is read from torch's version.py, because importing torch takes seconds.
    """
    spec = find_spec("torch")
    for folder in spec.submodule_search_locations or () if spec else ():
        try:
            text = (Path(folder) / "version.py").read_text(encoding="utf-8")
        except OSError:
            continue
        found = re.search(r"^cuda\b[^=\n]*=\s*'([^']+)'", text, re.MULTILINE)
        return found.group(1) if found else None
    return None


def choose_mps(asked: str, device: ChosenDevice, program: str | None, pipe_directory: str | None) -> Choice:
    """Returns own, adopt or off for `--mps`. Raises ConfigError where what is asked for can't be had.

    `program` is the path of the MPS daemon (None: it is not installed), `pipe_directory` the value of
    CUDA_MPS_PIPE_DIRECTORY when the server was started.
    """
    if device.kind != "cuda":
        return Choice("off", "only a GPU has it")
    if asked == "off":
        return Choice("off", "asked for", degraded=True)
    if asked == "adopt":
        if not pipe_directory:
            raise ConfigError("--mps adopt: CUDA_MPS_PIPE_DIRECTORY must name the pipe directory of a running daemon")
        return Choice("adopt", "asked for")
    if program is not None:
        return Choice("own", f"{program} is there")
    if asked == "own":
        raise ConfigError("--mps own: nvidia-cuda-mps-control is not on PATH: install the driver's MPS")
    return Choice("off", "nvidia-cuda-mps-control is not on PATH", degraded=True)


def choose_backend(asked: str, device: ChosenDevice, mps: Choice, cpus: Sequence[int]) -> Choice:
    """Returns the partition back end for `--partition`. Raises ConfigError where this machine can't have it."""
    return _on_gpu(asked, device, mps) if device.kind == "cuda" else _on_cpu(asked, cpus)


def _on_cpu(asked: str, cpus: Sequence[int]) -> Choice:
    if asked in ("green", "mps"):
        raise ConfigError(f"--partition {asked}: divides a GPU, and this server computes on the CPU; use cores or none")
    if asked == "cores" and len(cpus) < 2:
        raise ConfigError("--partition cores: needs two CPUs or more, and this process may use one")
    if asked != "auto":
        return Choice(asked, "asked for")
    return Choice("cores", f"{len(cpus)} CPUs can be divided") if len(cpus) > 1 else Choice("none", "there is one CPU")


def _on_gpu(asked: str, device: ChosenDevice, mps: Choice) -> Choice:
    if asked == "cores":
        raise ConfigError("--partition cores: divides CPUs, and this server computes on a GPU; use green, mps or none")
    if asked == "none":
        return Choice("none", "asked for")
    no_green = ""
    if device.cuda is None or device.cuda < GREEN_CONTEXTS:
        newest = ".".join(map(str, device.cuda)) if device.cuda else "unknown"
        no_green = f"the driver's CUDA is {newest}, and green contexts need {GREEN_CONTEXTS[0]}.{GREEN_CONTEXTS[1]}"
    no_mps = f"without MPS the phases take turns ({mps.why})" if mps.name == "off" else ""
    if asked != "auto":
        if trouble := no_mps or (no_green if asked == "green" else ""):
            raise ConfigError(f"--partition {asked}: {trouble}")
        return Choice(asked, "asked for")
    if no_mps:
        return Choice("none", no_mps, degraded=True)
    if no_green:
        return Choice("mps", no_green, degraded=True)
    return Choice("green", "MPS and green contexts: shares change between two steps")
