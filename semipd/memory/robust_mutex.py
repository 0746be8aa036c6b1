"""A mutex in shared memory that survives the death of its holder (POSIX robust, process-shared), through glibc."""

from __future__ import annotations

import ctypes
import errno
import time

from semipd.memory.errors import AccountBusy

MUTEX_BYTES = 64
"""Room for a pthread_mutex_t: 40 bytes on x86-64, 48 on aarch64."""

_PTHREAD_PROCESS_SHARED = 1
_PTHREAD_MUTEX_ROBUST = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _call(name: str, *arguments: object) -> None:
    code = getattr(_libc, name)(*arguments)
    if code:
        raise OSError(code, name)


class RobustMutex:
    """At a fixed place of a buffer that several processes map."""

    def __init__(self, address: int) -> None:
        self._at = ctypes.c_void_p(address)
        self._trylock = _libc.pthread_mutex_trylock
        self._unlock = _libc.pthread_mutex_unlock

    def initialise(self) -> None:
        """Once, before anybody else maps it."""
        attributes = ctypes.create_string_buffer(MUTEX_BYTES)
        _call("pthread_mutexattr_init", attributes)
        _call("pthread_mutexattr_setpshared", attributes, _PTHREAD_PROCESS_SHARED)
        _call("pthread_mutexattr_setrobust", attributes, _PTHREAD_MUTEX_ROBUST)
        _call("pthread_mutex_init", self._at, attributes)
        _call("pthread_mutexattr_destroy", attributes)

    def acquire(self, timeout_s: float) -> bool:
        """Whether the former holder died with it, so that what it guards must be repaired. Raises AccountBusy."""
        code: int = self._trylock(self._at)
        if code == errno.EBUSY:
            end = time.time() + timeout_s  # pthread_mutex_timedlock counts on CLOCK_REALTIME
            limit = _Timespec(int(end), int(end % 1 * 1e9))
            code = _libc.pthread_mutex_timedlock(self._at, ctypes.byref(limit))
        if code == errno.ETIMEDOUT:
            raise AccountBusy(f"the account's lock was not to be had in {timeout_s:g} s")
        if code not in (0, errno.EOWNERDEAD):
            raise OSError(code, "pthread_mutex_lock")
        return code == errno.EOWNERDEAD

    def declare_consistent(self) -> None:
        """After the repair. If we die before it, the next one repairs."""
        _call("pthread_mutex_consistent", self._at)

    def release(self) -> None:
        self._unlock(self._at)
