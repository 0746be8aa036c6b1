"""CPUs, memory, shared memory and limits."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

from semipd.cli.checkup.finding import Finding, State
from semipd.core.errors import StartError
from semipd.memory.arenas import available_bytes
from semipd.memory.robust_mutex import MUTEX_BYTES, RobustMutex

OPEN_FILES = 4096
MEMORY_BYTES = 2 * 10**9


@dataclass(frozen=True, slots=True)
class System:
    cpus: int
    """CPUs that this process may use."""
    cpu_quota: float | None
    """CPUs' worth of time that the container has; None: no limit."""
    memory_bytes: int
    """Available."""
    shm_bytes: int | None
    """Free in /dev/shm; None: there is none."""
    memfd_problem: str
    """Empty: anonymous shared memory works."""
    mutex_problem: str
    """Empty: a mutex in shared memory survives the death of its holder."""
    open_files: int
    open_files_hard: int
    """-1: no limit."""


def survey_system() -> System:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        shm = shutil.disk_usage("/dev/shm").free
    except OSError:
        shm = None
    return System(
        cpus=len(os.sched_getaffinity(0)),
        cpu_quota=cpu_quota(),
        memory_bytes=available_bytes(),
        shm_bytes=shm,
        memfd_problem=_try_memfd(),
        mutex_problem=_try_mutex(),
        open_files=soft,
        open_files_hard=hard,
    )


def cpu_quota(group: Path = Path("/sys/fs/cgroup")) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _try_memfd() -> str:
    try:
        fd = os.memfd_create("semipd-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, mmap.PAGESIZE)
            with mmap.mmap(fd, mmap.PAGESIZE) as mapped:
                mapped[0] = 1
        finally:
            os.close(fd)
    except (OSError, AttributeError) as error:
        return str(error)
    return ""


def _try_mutex() -> str:
    """Makes one, locks it and lets it go."""
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    room = (ctypes.c_char * MUTEX_BYTES).from_buffer(memory)
    try:
        mutex = RobustMutex(ctypes.addressof(room))
        mutex.initialise()
        mutex.acquire(timeout_s=1)
        mutex.release()
    except (OSError, StartError) as error:
        return str(error)
    return ""


def check_cpus(seen: System) -> Finding:
    value = f"{seen.cpus}"
    if seen.cpu_quota is not None and seen.cpu_quota < seen.cpus:
        value += f", {seen.cpu_quota:g} CPUs' worth of time"
        if seen.cpu_quota < 2:
            return Finding(
                "CPUs", State.LESS, value, "prefill and decode wait for each other: give the container 2 or more"
            )
    if seen.cpus < 2:
        return Finding("CPUs", State.LESS, value, "can't be divided: prefill and decode compete for one CPU")
    return Finding("CPUs", State.GOOD, value, "prefill and decode can have CPUs of their own")


def check_memory(seen: System) -> Finding:
    value = f"{seen.memory_bytes / 1e9:.1f} GB available"
    if seen.memory_bytes < MEMORY_BYTES:
        return Finding("memory", State.LESS, value, "enough for the bundled model at most; keep --kv-memory-gb small")
    return Finding(
        "memory", State.GOOD, value, "weights and KV must fit into it on a CPU; half of it at most goes to KV"
    )


def check_shared_memory(seen: System) -> Finding:
    room = "no /dev/shm" if seen.shm_bytes is None else f"/dev/shm has {seen.shm_bytes / 1e9:.1f} GB free"
    if seen.memfd_problem:
        return Finding(
            "shared memory",
            State.BAD,
            f"memfd: {seen.memfd_problem}",
            "workers can't share weights and KV: allow memfd_create",
        )
    return Finding("shared memory", State.GOOD, f"memfd works; {room}", "the size of /dev/shm sets no limit")


def check_mutex(seen: System) -> Finding:
    if seen.mutex_problem:
        return Finding("robust mutex", State.BAD, seen.mutex_problem, "the page account can't outlive a killed worker")
    return Finding("robust mutex", State.GOOD, "works", "a killed worker leaves the page account whole")


def check_open_files(seen: System) -> Finding:
    if seen.open_files == resource.RLIM_INFINITY:
        return Finding("open files", State.GOOD, "no limit", "")
    if seen.open_files < OPEN_FILES:
        fix = f"about {seen.open_files // 2} clients at once: ulimit -n {OPEN_FILES}"
        return Finding("open files", State.LESS, str(seen.open_files), fix)
    return Finding("open files", State.GOOD, str(seen.open_files), "one for each client's connection")
