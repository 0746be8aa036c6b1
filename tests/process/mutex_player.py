"""A process that takes the robust mutex at the start of a piece of shared memory, and lets it go.

usage: mutex_player.py FD BYTES hold|wait

hold: stops (SIGSTOP) with the mutex in hand, and releases it once it may run again. wait: prints what became of it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from semipd.memory.arenas import SharedArena
from semipd.memory.errors import AccountBusy
from semipd.memory.robust_mutex import RobustMutex


def main() -> None:
    arena = SharedArena("mutex", int(sys.argv[1]), int(sys.argv[2]))
    mutex = RobustMutex(ctypes.addressof(ctypes.c_char.from_buffer(arena.buffer)))
    try:
        mutex.acquire(timeout_s=60)
    except AccountBusy:
        print("nobody woke me")
        return
    if sys.argv[3] == "hold":
        os.kill(os.getpid(), signal.SIGSTOP)
    mutex.release()
    print("had it")


if __name__ == "__main__":
    main()
