"""Finds out where a figure comes from, so that it can be kept beside the figure."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from semipd.core.provenance import Provenance

PACKAGES = (
    *("semipd", "torch", "transformers", "grpcio", "protobuf", "pyzmq", "tokenizers", "aiohttp", "uvloop"),
    *("flashinfer-python", "cupy-cuda13x", "triton", "cuda-bindings", "nvidia-ml-py"),
)
ROOT = Path(__file__).parents[2]
COMMIT = "SEMIPD_COMMIT"
"""The environment's variable with the commit, for a copy of the tree without its repository; "-dirty" at its end says
that the copy had changes."""


def provenance() -> Provenance:
    commit, changed = _commit()
    return Provenance(
        command=" ".join([_program(), shlex.join(sys.argv[1:])]).strip(),
        commit=commit,
        uncommitted_changes=changed,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        python=platform.python_version(),
        system=platform.platform(),
        cpu=_cpu(),
        cpus=len(os.sched_getaffinity(0)),
        gpus=_same_gpus(),
        versions={name: found for name in PACKAGES if (found := _version(name)) is not None},
    )


def _commit() -> tuple[str, bool]:
    """Returns the commit, and whether the code that runs differs from it."""
    told = os.environ.get(COMMIT, "")  # of a copy, which may have come with another history, or none
    if not told and (ROOT / ".git").exists():
        changes = _said("git", "status", "--porcelain", "--untracked-files=no", "--", ".")
        return _said("git", "rev-parse", "HEAD"), bool(changes)
    return told.removesuffix("-dirty"), told.endswith("-dirty")


def gpus() -> tuple[str, ...]:
    """Empty where there is no nvidia-smi."""
    query = "--query-gpu=name,memory.total,driver_version"
    said = _said("nvidia-smi", query, "--format=csv,noheader")
    return tuple(f"{name}, {memory}, driver {driver}" for name, memory, driver in _rows(said))


_same_gpus = cache(gpus)  # nvidia-smi takes a second where nobody keeps the driver awake; the cards stay


def _rows(said: str) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.split(",")] for line in said.splitlines()]
    return [row for row in rows if len(row) == 3]


def _program() -> str:
    """Python's `-m` leaves the path of the module's file: the name is enough."""
    path = Path(sys.argv[0])
    if path.suffix != ".py":
        return path.name
    try:
        inside = path.resolve().relative_to(ROOT)
    except ValueError:
        return f"python {path.name}"
    if inside.parts[0] != "semipd":
        return f"python {inside}"
    module = ".".join(inside.with_suffix("").parts)
    return f"python -m {module.removesuffix('.__main__')}"


def _said(*command: str) -> str:
    """Returns what the command prints; an empty string where it is not there or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
