"""What the server computes on, how the phases divide it, and why. Each choice is made once, at start."""

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
"""The oldest GPUs that the kernels run on: Ampere."""
GREEN_CONTEXTS = (12, 4)
"""The CUDA that the driver must support for them."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
INSTALL = "pip install 'semipd[cuda]'"
INSTALL_TORCH = "pip install 'torch>=2.11' (a CUDA build)"
PACKAGES = {"cupy": ("cupy", INSTALL), "cuda-bindings": ("cuda.bindings", INSTALL), "triton": ("triton", INSTALL_TORCH)}
"""Without which nothing computes on a GPU: module, and where it comes from."""


@dataclass(frozen=True, slots=True)
class Device:
    kind: str
    """cpu or cuda."""
    why: str
    gpu: Gpu | None = None
    cuda: tuple[int, int] | None = None
    """The newest CUDA that the driver supports."""
    pin: str = ""
    """What CUDA_VISIBLE_DEVICES must say to every process, so that all mean the same GPU; empty: there is one alone.
    A UUID: an MPS daemon numbers anew what it sees, and its clients would apply a number a second time."""

    def __str__(self) -> str:
        return f"cuda ({self.gpu.name})" if self.gpu else self.kind


@dataclass(frozen=True, slots=True)
class Chosen:
    """A partition back end, or a kind of MPS."""

    name: str
    why: str
    less: bool = False
    """The GPU is there and can't be used as well as it could: worth a warning."""


def choose_device(
    asked: str, driver: Driver | None = None, missing: Mapping[str, str] | None = None, setting: str | None = None
) -> Device:
    """The device for `--device`. Raises ConfigError where `cuda` is asked for and can't be.

    `missing`: packages that aren't installed, with the command that installs them; `setting`: CUDA_VISIBLE_DEVICES.
    What isn't given is looked up here.
    """
    if asked == "cpu":
        return Device("cpu", "asked for")
    driver = survey_driver() if driver is None else driver
    setting = os.environ.get(VISIBLE) if setting is None else setting
    trouble = _no_gpu(driver, setting) or _not_installed(missing_packages() if missing is None else missing)
    if not trouble:
        gpu = visible(driver.gpus, setting)[0]
        pin = gpu.uuid if setting is not None or len(driver.gpus) > 1 else ""
        return Device("cuda", "asked for" if asked == "cuda" else "there is a GPU", gpu, driver.cuda, pin)
    if asked == "cuda":
        raise ConfigError(f"--device cuda: {trouble}")
    return Device("cpu", trouble)


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
    """What a GPU needs and this environment lacks, each with the command that installs it. Imports nothing heavy."""
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
    """The CUDA that torch is built for; None: a CPU build, or no torch. Read from its version.py: importing torch takes
    seconds."""
    spec = find_spec("torch")
    for folder in spec.submodule_search_locations or () if spec else ():
        try:
            text = (Path(folder) / "version.py").read_text(encoding="utf-8")
        except OSError:
            continue
        found = re.search(r"^cuda\b[^=\n]*=\s*'([^']+)'", text, re.MULTILINE)
        return found.group(1) if found else None
    return None


def choose_mps(asked: str, device: Device, program: str | None, pipe_directory: str | None) -> Chosen:
    """own, adopt or off, for `--mps`. Raises ConfigError where what is asked for can't be.

    `program`: where the MPS daemon is; `pipe_directory`: CUDA_MPS_PIPE_DIRECTORY as the server found it.
    """
    if device.kind != "cuda":
        return Chosen("off", "only a GPU has it")
    if asked == "off":
        return Chosen("off", "asked for", less=True)
    if asked == "adopt":
        if not pipe_directory:
            raise ConfigError("--mps adopt: CUDA_MPS_PIPE_DIRECTORY must name the pipe directory of a running daemon")
        return Chosen("adopt", "asked for")
    if program is not None:
        return Chosen("own", f"{program} is there")
    if asked == "own":
        raise ConfigError("--mps own: nvidia-cuda-mps-control is not on PATH: install the driver's MPS")
    return Chosen("off", "nvidia-cuda-mps-control is not on PATH", less=True)


def choose_backend(asked: str, device: Device, mps: Chosen, cpus: Sequence[int]) -> Chosen:
    """The partition back end for `--partition`. Raises ConfigError where this machine can't have it."""
    return _on_gpu(asked, device, mps) if device.kind == "cuda" else _on_cpu(asked, cpus)


def _on_cpu(asked: str, cpus: Sequence[int]) -> Chosen:
    if asked in ("green", "mps"):
        raise ConfigError(f"--partition {asked}: divides a GPU, and this server computes on the CPU; use cores or none")
    if asked == "cores" and len(cpus) < 2:
        raise ConfigError("--partition cores: needs two CPUs or more, and this process may use one")
    if asked != "auto":
        return Chosen(asked, "asked for")
    return Chosen("cores", f"{len(cpus)} CPUs can be divided") if len(cpus) > 1 else Chosen("none", "there is one CPU")


def _on_gpu(asked: str, device: Device, mps: Chosen) -> Chosen:
    if asked == "cores":
        raise ConfigError("--partition cores: divides CPUs, and this server computes on a GPU; use green, mps or none")
    if asked == "none":
        return Chosen("none", "asked for")
    no_green = ""
    if device.cuda is None or device.cuda < GREEN_CONTEXTS:
        newest = ".".join(map(str, device.cuda)) if device.cuda else "unknown"
        no_green = f"the driver's CUDA is {newest}, and green contexts need {GREEN_CONTEXTS[0]}.{GREEN_CONTEXTS[1]}"
    no_mps = f"without MPS the phases take turns ({mps.why})" if mps.name == "off" else ""
    if asked != "auto":
        if trouble := no_mps or (no_green if asked == "green" else ""):
            raise ConfigError(f"--partition {asked}: {trouble}")
        return Chosen(asked, "asked for")
    if no_mps:
        return Chosen("none", no_mps, less=True)
    if no_green:
        return Chosen("mps", no_green, less=True)
    return Chosen("green", "MPS and green contexts: shares change between two steps")
