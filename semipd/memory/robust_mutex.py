"""A mutex in shared memory that survives the death of its holder (POSIX robust, process-shared), through glibc.

A process that releases the mutex wakes one waiter; until that waiter runs, any process may take the mutex. Suppose
that a third process takes it in between, and that the process that should wake, or the one that was woken, is killed.
Then nothing says any longer that others wait, and nobody will wake them: the kernel repairs a lost wake-up only where
the mutex is free or its holder is dead. So a waiter never sleeps for longer than NAP_S; then it looks again, and says
again that it waits.
"""

from __future__ import annotations

import ctypes
import errno
import time
from collections.abc import Callable
from types import TracebackType

from semipd.core.errors import StartError
from semipd.memory.errors import AccountBusy, AccountCorrupt, AccountError

MUTEX_BYTES = 64
"""Bytes for a pthread_mutex_t, which has 40 on x86-64 and 48 on aarch64. `initialise` verifies that they are enough."""

NAP_S = 0.005
"""Seconds that a lost wake-up costs at most: less than a decode step. Only a process that finds the mutex taken
sleeps."""

_PTHREAD_PROCESS_SHARED = 1
_PTHREAD_MUTEX_ROBUST = 1
_UNTOUCHED = 0xA5

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _call(name: str, *arguments: object) -> None:
    code = getattr(_libc, name)(*arguments)
    if code:
        raise OSError(code, name)


class RobustMutex:
    """A mutex at a fixed address of a buffer that several processes map.

    Raises StartError on a system without such mutexes.
    """

    def __init__(self, address: int) -> None:
        if not hasattr(_libc, "pthread_mutex_clocklock"):
            raise StartError("the page account needs Linux with glibc 2.30 or later (pthread_mutex_clocklock)")
        self._at = ctypes.c_void_p(address)
        self._trylock = _libc.pthread_mutex_trylock
        self._unlock = _libc.pthread_mutex_unlock

    def initialise(self) -> None:
        """Initialises the mutex, once, before another process maps it. Raises StartError where this system's mutex does
        not fit."""
        bytes_ = (ctypes.c_ubyte * MUTEX_BYTES).from_address(self._at.value or 0)
        ctypes.memset(bytes_, _UNTOUCHED, MUTEX_BYTES)
        attributes = ctypes.create_string_buffer(MUTEX_BYTES)
        _call("pthread_mutexattr_init", attributes)
        _call("pthread_mutexattr_setpshared", attributes, _PTHREAD_PROCESS_SHARED)
        _call("pthread_mutexattr_setrobust", attributes, _PTHREAD_MUTEX_ROBUST)
        _call("pthread_mutex_init", self._at, attributes)
        _call("pthread_mutexattr_destroy", attributes)
        if bytes(bytes_[-8:]) != bytes([_UNTOUCHED]) * 8:
            raise StartError(f"this system's mutexes are larger than the {MUTEX_BYTES - 8} bytes that are known")

    def acquire(self, timeout_s: float) -> bool:
        """Takes the mutex, and returns whether its former holder died with it, so that what it guards must be repaired.

        Raises AccountBusy, and AccountCorrupt where a repair has failed for good.
        """
        code: int = self._trylock(self._at)
        if code == errno.EBUSY:
            code = self._wait(timeout_s)
        if code == errno.ETIMEDOUT:
            raise AccountBusy(f"the account's lock was not to be had in {timeout_s:g} s")
        if code == errno.ENOTRECOVERABLE:
            raise AccountCorrupt("a holder of the account's lock died, and what it left could not be repaired")
        if code not in (0, errno.EOWNERDEAD):
            raise OSError(code, "pthread_mutex_lock")
        return code == errno.EOWNERDEAD

    def _wait(self, timeout_s: float) -> int:
        """Waits for the mutex and returns an error number.

        It counts naps, not time: where the machine stood still for seconds, that is one nap only.
        """
        left = timeout_s
        while True:
            end = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(min(left, NAP_S) * 1e9)
            limit = _Timespec(*divmod(end, 1_000_000_000))
            code: int = _libc.pthread_mutex_clocklock(self._at, time.CLOCK_MONOTONIC, ctypes.byref(limit))
            left -= NAP_S
            if code != errno.ETIMEDOUT or left <= 0:
                return code

    def declare_consistent(self) -> None:
        """Says that the repair is done.

        If we die before this call, the next process repairs. If we released the mutex without it, no process could ever
        take it again.
        """
        _call("pthread_mutex_consistent", self._at)

    def release(self) -> None:
        self._unlock(self._at)


class CriticalSection:
    """Holds the lock inside `with section:`.

    What a dead holder left half done is repaired before the body runs. What an exception (a lack of memory, a bug) left
    half done is repaired before the lock is released. Where that repair fails too, the lock is kept, so that nobody
    works on what is broken; the first process that comes after this thread has ended repairs it.

    An AccountError is a refusal: the body has changed nothing when it raises one.
    """

    def __init__(self, mutex: RobustMutex, timeout_s: float, repair: Callable[[], None]) -> None:
        self._mutex = mutex
        self._timeout_s = timeout_s
        self._repair = repair

    def __enter__(self) -> None:
        if self._mutex.acquire(self._timeout_s):
            try:
                self._repair()
                self._mutex.declare_consistent()
            except BaseException:
                self._mutex.release()
                raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, AccountError):
            self._repair()
        self._mutex.release()
