"""Compiles FlashInfer's kernels into semipd's set, with progress. Needs nvcc, a C++ compiler and ninja, but no GPU.

FlashInfer writes the sources and the ninja file of a kernel into its own cache (~/.cache/flashinfer, or below
$FLASHINFER_WORKSPACE_BASE), and ninja compiles there, so that what was compiled before is not compiled again. A library
that is complete is moved into the set in one step.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from semipd.engine.flashinfer_kernels import (
    NOT_INSTALLED,
    Capability,
    Kernel,
    KernelError,
    architecture,
    flashinfer_version,
    kernel_set,
)
from semipd.engine.flashinfer_specs import argument

STATUS = re.compile(r"^\[(\d+)/(\d+)\]")
TELLING = re.compile(r"\berror\b|Error:|fatal|undefined reference")


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """The progress of a build."""

    kernel: Kernel
    """The kernel that is being built, or was built just now."""
    done: int
    kernels: int
    fraction: float
    """The part of that kernel that is built, 0 to 1."""


@dataclass(frozen=True, slots=True)
class BuildTools:
    """Programs that a build needs."""

    nvcc: Path
    ninja: Path


def find_nvcc(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Returns the nvcc that FlashInfer's ninja files call."""
    if "FLASHINFER_NVCC" in environment:
        return _program(environment["FLASHINFER_NVCC"])
    home = environment.get("CUDA_HOME") or environment.get("CUDA_PATH")
    if home:
        return _program(str(Path(home) / "bin" / "nvcc"))
    return _program("nvcc") or _program("/usr/local/cuda/bin/nvcc")


def find_ninja() -> Path | None:
    """Returns the ninja on PATH, or the one that pip has put beside this Python."""
    return _program("ninja") or _program(str(Path(sysconfig.get_path("scripts")) / "ninja"))


def find_tools() -> BuildTools:
    """Finds the tools of a build. Raises KernelError, which says what is missing and how to get it."""
    if flashinfer_version() is None:
        raise KernelError(NOT_INSTALLED)
    nvcc, ninja = find_nvcc(), find_ninja()
    if nvcc is None:
        raise KernelError("no nvcc: install the CUDA toolkit, and set CUDA_HOME or put nvcc on PATH")
    if ninja is None:
        raise KernelError("no ninja: pip install 'semipd[cuda]' brings it")
    if _program(os.environ.get("CXX", "c++")) is None:
        raise KernelError("no C++ compiler: install g++, or name one in CXX")
    return BuildTools(nvcc, ninja)


def build(
    kernels: Sequence[Kernel], capability: Capability, jobs: int, progress: Callable[[BuildProgress], None]
) -> list[Path]:
    """Compiles the kernels, puts them into the set, and returns the libraries in the same order.

    `progress` is called before and after every step of a compiler. Raises KernelError; libraries that were put into the
    set before that stay.
    """
    tools = find_tools()
    folder = kernel_set(flashinfer_version() or "", capability)
    environment = {**os.environ, "FLASHINFER_CUDA_ARCH_LIST": architecture(capability)}
    environment.pop("FLASHINFER_DISABLE_JIT", None)
    ninja = [str(tools.ninja), "-v", "-j", str(jobs), "-f"]
    libraries = []
    with _alone(folder), (folder / "build.log").open("w", encoding="utf-8") as log:
        for done, plan in enumerate(_plans(kernels, environment, log)):
            told = partial(BuildProgress, plan.kernel, done, len(kernels))
            progress(told(0.0))
            with closing(_compile(plan, [*ninja, str(plan.ninja_file)], environment, log)) as fractions:
                for fraction in fractions:
                    progress(told(fraction))
            libraries.append(_install(plan.library, folder / plan.kernel.name))
            progress(BuildProgress(plan.kernel, done + 1, len(kernels), 0.0))
    return libraries


@dataclass(frozen=True, slots=True)
class _BuildPlan:
    """A kernel, and the files of its build."""

    kernel: Kernel
    ninja_file: Path
    library: Path
    """The library that ninja makes."""


def _plans(kernels: Sequence[Kernel], environment: Mapping[str, str], log: IO[str]) -> list[_BuildPlan]:
    command = [sys.executable, "-m", "semipd.engine.flashinfer_specs", *map(argument, kernels)]
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
    log.write(ended.stdout)
    log.flush()
    if ended.returncode:
        raise _failure("FlashInfer can't prepare the build", Path(log.name))
    answers = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    for kernel, answer in zip(kernels, answers, strict=True):
        if answer["name"] != kernel.name:
            raise KernelError(
                f"semipd doesn't know this version of FlashInfer ({flashinfer_version()}): it names a kernel "
                f"{answer['name']}, not {kernel.name}"
            )
    return [_BuildPlan(k, Path(a["ninja"]), Path(a["library"])) for k, a in zip(kernels, answers, strict=True)]


def _compile(
    plan: _BuildPlan, command: Sequence[str], environment: Mapping[str, str], log: IO[str]
) -> Generator[float]:
    """Yields the fraction of the build that is done, as it grows."""
    where = plan.ninja_file.parent  # ninja's log of what it did lies there
    child = subprocess.Popen(
        command, cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert child.stdout is not None
        for line in child.stdout:
            log.write(line)
            status = STATUS.match(line)
            if status:
                yield int(status[1]) / int(status[2])
        log.flush()
    except BaseException:
        child.terminate()  # ninja ends its compilers and removes what they leave half done
        raise
    finally:
        code = child.wait()
    if code:
        raise _failure(f"compiling the kernel failed ({plan.kernel.why})", Path(log.name))


def _failure(what: str, log: Path) -> KernelError:
    """Returns an error with the most telling line of the log."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    lines = [line for line in lines if line and not STATUS.match(line)] or ["no message"]
    errors = [line for line in lines if TELLING.search(line)]
    return KernelError(f"{what}: {(errors or lines[-1:])[0][:300]}\nlog: {log}")


def _install(library: Path, folder: Path) -> Path:
    """Puts a library into the set. Other processes see the whole file or none."""
    folder.mkdir(parents=True, exist_ok=True)
    half, whole = folder / f".{os.getpid()}", folder / library.name
    try:
        shutil.copyfile(library, half)
        os.replace(half, whole)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise KernelError(f"{whole}: {error.strerror}") from error
    return whole


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one build at a time into a set.

    Raises KernelError where another build is running, or the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise KernelError(f"{folder}: {error.strerror}; SEMIPD_KERNELS names another place") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise KernelError(f"another build is under way in {folder}") from None
        yield


def _program(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None
