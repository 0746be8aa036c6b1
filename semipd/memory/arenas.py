"""Memory of the machine that several processes map: anonymous files (memfd).

They have no name, so nothing is left when all processes are killed, and nobody can guess a name. They are not limited
by the size of /dev/shm, and they travel as file descriptors.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from semipd.core.errors import StartError

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SharedArena:
    """A mapped piece of shared memory. `fd` may be sent to other processes.

    Another kind of memory needs the same attributes: `name`, `bytes`, and `close` by `with`.
    """

    def __init__(self, name: str, fd: int, size: int, *, writable: bool = True) -> None:
        """Maps what `fd` refers to, and owns the descriptor from now on. Raises StartError where it is smaller.

        A write to memory that is not mapped writable ends the process (SIGSEGV); no other process is harmed.
        """
        self.name = name
        self.fd = fd
        self.bytes = size
        try:
            found = os.fstat(fd).st_size
            if found < size:
                raise StartError(f"arena {name!r} has {found} bytes, and {size} were announced")
            protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
            self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, protection)
        except BaseException:
            os.close(fd)
            raise
        self.buffer = memoryview(self._map)

    @classmethod
    def create(cls, name: str, size: int) -> SharedArena:
        """Returns zeroed memory, all of it allocated. Raises StartError where there is not enough."""
        available = available_bytes()
        if size > available:  # the kernel would kill a process rather than refuse
            raise _not_to_be_had(name, size, available, "too little memory")
        fd = os.memfd_create(f"semipd-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            os.close(fd)
            raise _not_to_be_had(name, size, available, os.strerror(error.errno or 0)) from error
        return cls(name, fd, size)

    def close(self) -> None:
        """Closes the descriptor and unmaps the memory. While there is a view of it, it is unmapped with the last
        view."""
        with contextlib.suppress(BufferError):
            self.buffer.release()
            self._map.close()
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _not_to_be_had(name: str, size: int, available: int, why: str) -> StartError:
    return StartError(
        f"{size / 1e9:.3f} GB of shared memory for {name!r} are not to be had ({why}); "
        f"about {available / 1e9:.3f} GB are available"
    )


def available_bytes() -> int:
    """Returns the bytes that could be allocated without swapping, within the control group's limit."""
    with open("/proc/meminfo") as file:
        lines = dict(line.split(":", 1) for line in file)
    found = int(lines["MemAvailable"].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without a limit ("max")
        found = min(found, _left_in_group(Path("/sys/fs/cgroup")))
    return max(0, found)


def _left_in_group(group: Path) -> int:
    """Returns the bytes left in a control group. Raises OSError or ValueError where it has no limit."""
    limit = int((group / "memory.max").read_text())
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    cached = int(stat["inactive_file"]) + int(stat["active_file"])  # freed when a process needs it
    return limit - int((group / "memory.current").read_text()) + cached
