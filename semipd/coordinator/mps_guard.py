"""Runs the MPS control daemon, and ends all its processes when the daemon or the server ends.

The daemon starts an `nvidia-cuda-mps-server` of its own, which would outlive a daemon that is killed. This process
adopts such orphans (PR_SET_CHILD_SUBREAPER) and ends them before it ends itself. It does so when the daemon is killed,
and when the coordinator is killed: then the kernel sends this process a signal.

usage: python -m semipd.coordinator.mps_guard LOG_FILE      (started by the coordinator)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

from semipd.wire.process import die_with_parent, started_by

MPS_CONTROL = "nvidia-cuda-mps-control"
PR_SET_CHILD_SUBREAPER = 36
AWAITED = {signal.SIGTERM, signal.SIGCHLD}
QUIT_S = 0.4
"""Seconds for a daemon that is asked to quit. Its clients are our workers and end anyway, so it need not wait for
them."""


def main() -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    die_with_parent(started_by(), signal.SIGTERM)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with open(sys.argv[1], "ab") as log:
        command = [MPS_CONTROL, "-f"]
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_before_exec)  # noqa: PLW1509
    while daemon.poll() is None:
        if signal.sigwait(AWAITED) == signal.SIGTERM:
            _quit(daemon)
    _end_orphans()
    return abs(int(daemon.returncode))


def _before_exec() -> None:
    """Runs in the daemon's process, which has one thread, before the daemon does."""
    die_with_parent()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, AWAITED)


def _quit(daemon: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run([MPS_CONTROL], input=b"quit\n", capture_output=True, timeout=QUIT_S, check=False)
        daemon.wait(QUIT_S)
    if daemon.poll() is None:
        daemon.kill()
        daemon.wait()


def _end_orphans() -> None:
    """Kills this process's children, and the orphans that become its children when their parents end."""
    while children := _children():
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children() -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has just ended
            # pid (name) state parent ...; a name may hold anything, also ")"
            parent = stat.read_text(errors="replace").rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.append(int(stat.parent.name))
    return found


if __name__ == "__main__":
    sys.exit(main())
