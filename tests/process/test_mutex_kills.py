"""The mutex under the account, where a process is killed between letting go of it and waking who waits."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from semipd.memory.arenas import SharedArena
from semipd.memory.robust_mutex import MUTEX_BYTES, RobustMutex
from support.syscalls import stop_before

PLAYER = Path(__file__).parent / "mutex_player.py"
FUTEX = {"x86_64": 202, "aarch64": 98}[platform.machine()]
FUTEX_WAKE = 1
FUTEX_WAITERS = 1 << 31
"""Bit in the first word of the mutex, as the kernel's robust futexes have it."""


@contextmanager
def player(arena: SharedArena, part: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(PLAYER), str(arena.fd), str(arena.bytes), part]
    with subprocess.Popen(command, pass_fds=[arena.fd], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def player_after(holder: subprocess.Popen[str], arena: SharedArena) -> Iterator[subprocess.Popen[str]]:
    """One that waits, started when the holder has stopped with the mutex in hand."""
    _, status = os.waitpid(holder.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    with player(arena, "wait") as waiter:
        yield waiter


def is_asleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def wakes_another_process(number: int, arguments: list[int]) -> bool:
    """Waking within one process has one flag more than the bare operation."""
    return number == FUTEX and arguments[1] == FUTEX_WAKE


def test_who_waits_gets_it_though_the_one_that_was_to_wake_it_died_and_a_third_had_it_in_between() -> None:
    """The kernel wakes nobody for the dead one, since it is not its mutex any more, and neither does the third, since
    the mutex no longer tells it that somebody waits."""
    with SharedArena.create("mutex", MUTEX_BYTES) as arena:
        address = ctypes.addressof(ctypes.c_char.from_buffer(arena.buffer))
        mutex = RobustMutex(address)
        mutex.initialise()
        word = ctypes.c_uint32.from_address(address)
        with player(arena, "hold") as holder, player_after(holder, arena) as waiter:
            while not (word.value & FUTEX_WAITERS and is_asleep(waiter.pid)):
                assert waiter.poll() is None
            try:
                stop_before(holder.pid, wakes_another_process)
            except PermissionError:
                pytest.skip("tracing a child is forbidden here")
            assert mutex.acquire(timeout_s=0) is False, "the holder has let go of it"
            holder.kill()
            holder.wait()
            mutex.release()
            said, _ = waiter.communicate()
    assert said == "had it\n"
