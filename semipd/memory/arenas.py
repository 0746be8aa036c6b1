"""Memory that several processes map.

On a CPU: anonymous files (memfd). They have no name, so that nothing is left when everybody is killed and nobody can
guess one; they are not limited by the size of /dev/shm; and they travel as file descriptors.
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
    """A piece of shared memory, mapped for reading and writing. `fd` may be sent to other processes."""

    def __init__(self, name: str, fd: int, size: int) -> None:
        """Maps what `fd` refers to, and owns the descriptor from now on. Raises StartError where it is smaller."""
        self.name = name
        self.fd = fd
        self.bytes = size
        if os.fstat(fd).st_size < size:
            raise StartError(f"arena {name!r} has {os.fstat(fd).st_size} bytes, and {size} were announced")
        self._map = mmap.mmap(fd, size, mmap.MAP_SHARED)
        self.buffer = memoryview(self._map)

    @classmethod
    def create(cls, name: str, size: int) -> SharedArena:
        """Zeroed memory, all of it really there. Raises StartError where it is not to be had."""
        fd = os.memfd_create(f"semipd-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            os.close(fd)
            available = available_bytes()
            raise StartError(
                f"{size / 1e9:.2f} GB of shared memory for {name!r} are not to be had ({error.strerror}); "
                f"about {available / 1e9:.2f} GB are available"
            ) from error
        return cls(name, fd, size)

    def close(self) -> None:
        """Closes the descriptor, and unmaps the memory unless somebody still has a view of it: then with the last."""
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


def available_bytes() -> int:
    """Memory that could be had without swapping, within the control group's limit."""
    with open("/proc/meminfo") as file:
        lines = dict(line.split(":", 1) for line in file)
    found = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without a limit ("max")
        found = min(found, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(0, found)
