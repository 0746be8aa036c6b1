"""Stops another process at the entry of a system call (ptrace), on any Linux that has PTRACE_GET_SYSCALL_INFO (5.3)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

_ATTACH, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 16, 24, 0x4200, 0x420E
_O_TRACESYSGOOD, _O_EXITKILL = 1, 1 << 20
_ENTRY = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _SyscallInfo(ctypes.Structure):
    """struct ptrace_syscall_info, as far as it is the same for an entry."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("arch", ctypes.c_uint32),
        ("instruction_pointer", ctypes.c_uint64),
        ("stack_pointer", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 6),
    )


def _ptrace(request: int, pid: int, address: int = 0, data: int | ctypes.Structure = 0) -> None:
    pointer = ctypes.c_void_p(data) if isinstance(data, int) else ctypes.byref(data)
    if _libc.ptrace(ctypes.c_long(request), pid, ctypes.c_void_p(address), pointer) == -1:
        raise OSError(ctypes.get_errno(), "ptrace")


def stop_before(stopped: int, wanted: Callable[[int, list[int]], bool]) -> None:
    """Lets a stopped child of this thread run on until it is about to make the system call that `wanted` says of its
    number and arguments. It stays stopped there; all that may follow is its death. Raises OSError where this machine
    lets nobody trace a child.
    """
    _ptrace(_ATTACH, stopped)
    os.waitpid(stopped, 0)
    _ptrace(_SETOPTIONS, stopped, 0, _O_TRACESYSGOOD | _O_EXITKILL)
    while True:
        _ptrace(_SYSCALL, stopped)
        _, status = os.waitpid(stopped, 0)
        if not os.WIFSTOPPED(status):
            raise AssertionError("it ended without that system call")
        info = _SyscallInfo()
        _ptrace(_GET_SYSCALL_INFO, stopped, ctypes.sizeof(info), info)
        if info.op == _ENTRY and wanted(info.number, list(info.arguments)):
            return
