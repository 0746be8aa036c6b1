"""Python and the packages in this environment."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from semipd.cli.checkup.finding import Finding, State
from semipd.coordinator.devices import torch_cuda

NEEDED = {"grpcio": (1, 81, 1), "protobuf": (6, 33), "pyzmq": (26,), "tokenizers": (0, 21), "safetensors": (0, 5)}
"""The least version of each without which no server runs; as in pyproject.toml."""

PYTHON = (3, 11)
TORCH = (2, 11)


@dataclass(frozen=True, slots=True)
class Packages:
    python: tuple[int, int, int]
    versions: Mapping[str, str]
    """Versions of the packages that are installed."""
    torch_cuda: str | None
    """The CUDA that torch is built for; None: a CPU build, or no torch."""


def survey_packages() -> Packages:
    versions = {}
    for name in (*NEEDED, "torch", "triton", "flashinfer-python", "cuda-bindings"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    cupy = [name for name in ("cupy-cuda13x", "cupy-cuda12x", "cupy") if _installed(name)]
    if cupy:
        versions["cupy"] = version(cupy[0])
    return Packages(sys.version_info[:3], versions, torch_cuda())


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def numbers(text: str) -> tuple[int, ...]:
    """ "2.13.0+cpu" -> (2, 13, 0)"""
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])


def dotted(wanted: tuple[int, ...]) -> str:
    return ".".join(map(str, wanted))


def check_python(seen: Packages) -> Finding:
    value = dotted(seen.python)
    if seen.python < PYTHON:
        return Finding("Python", State.BAD, value, f"semipd needs {dotted(PYTHON)} or newer")
    return Finding("Python", State.GOOD, value, "")


def check_torch(seen: Packages, gpu: bool) -> Finding:
    found = seen.versions.get("torch")
    if found is None:
        return Finding("torch", State.BAD, "not installed", f"no engine: pip install 'torch>={dotted(TORCH)}'")
    if numbers(found) < TORCH:
        return Finding("torch", State.BAD, found, f"too old: pip install 'torch>={dotted(TORCH)}'")
    build = f"CUDA {seen.torch_cuda}" if seen.torch_cuda else "CPU build"
    if gpu and not seen.torch_cuda:
        return Finding("torch", State.LESS, f"{found}, {build}", "computes on the CPU; a GPU needs a CUDA build")
    return Finding("torch", State.GOOD, f"{found}, {build}", f"computes on the {'GPU' if gpu else 'CPU'}")


def check_needed(seen: Packages) -> list[Finding]:
    findings = []
    for name, least in NEEDED.items():
        found = seen.versions.get(name)
        if found is None:
            findings.append(Finding(name, State.BAD, "not installed", f"pip install '{name}>={dotted(least)}'"))
        elif numbers(found) < least:
            findings.append(Finding(name, State.BAD, found, f"too old: pip install '{name}>={dotted(least)}'"))
        else:
            findings.append(Finding(name, State.GOOD, found, ""))
    return findings


def check_gpu_packages(seen: Packages, gpu: bool) -> list[Finding]:
    """Checks the packages of the extra `cuda`: only a GPU needs them."""
    wanted = {
        "CuPy": ("cupy", "a GPU's memory, shared between workers"),
        "cuda-bindings": ("cuda-bindings", "green contexts"),
        "Triton": ("triton", "semipd's own kernels"),
        "FlashInfer": ("flashinfer-python", "faster attention for prompts"),
    }
    findings = []
    for title, (name, purpose) in wanted.items():
        found = seen.versions.get(name)
        if found is not None:
            findings.append(Finding(title, State.GOOD, found, purpose))
        elif gpu:
            findings.append(Finding(title, State.LESS, "not installed", f"{purpose}: pip install 'semipd[cuda]'"))
        else:
            findings.append(Finding(title, State.NEEDLESS, "not installed", "not needed without a GPU"))
    return findings
