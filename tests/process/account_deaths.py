"""Dies at every instruction of every operation of the page account, and looks at what is left.

For each operation and each n, a child process carries the operation out and kills itself (SIGKILL) before the n-th
bytecode instruction that it runs in semipd/memory. What the parent then finds must be consistent, and be the state
before the operation or the one after it. The repair after such a death is killed at each instruction too.

Prints one JSON object: by operation the deaths, the repairs that they made necessary, and what was wrong. It is a
program of its own because it forks.

usage: account_deaths.py [stand-still FD BYTES]
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

import numpy as np

import semipd.memory
from semipd.memory.account import COORDINATOR, Holder, PageAccount, Role
from semipd.memory.arenas import SharedArena
from semipd.memory.errors import AccountCorrupt
from semipd.memory.robust_mutex import CriticalSection

PAGES, LEASES = 12, 5
PREFILL = Holder(Role.PREFILL, 1)
DECODE = Holder(Role.DECODE, 2)
ROOM = os.path.dirname(os.path.abspath(semipd.memory.__file__ or ""))

State = tuple[Any, ...]


@dataclass(frozen=True)
class Scene:
    """An account in use: three leases, one closed number, and pages in quarantine."""

    account: PageAccount
    leases: tuple[int, ...]

    @classmethod
    def set_up(cls) -> Scene:
        account = PageAccount.create(memoryview(mmap.mmap(-1, PageAccount.bytes_needed(PAGES, LEASES))), PAGES, LEASES)
        gone = account.open(DECODE)
        account.take(gone, 2, DECODE)
        first, second, third = account.open(PREFILL), account.open(PREFILL), account.open(DECODE)
        account.take(first, 3, PREFILL)
        account.take(second, 1, PREFILL)
        account.take(first, 1, PREFILL)
        account.take(third, 2, DECODE)
        account.release(gone, DECODE, quarantine=True)
        return cls(account, (first, second, third))

    def state_of(self, lease: int) -> State:
        holder = self.account.holder(lease)
        return (lease, holder, [] if holder is None else self.account.table(lease).tolist())


OPERATIONS: dict[str, Callable[[Scene], object]] = {
    "open": lambda s: s.account.open(PREFILL),
    "take": lambda s: s.account.take(s.leases[0], 2, PREFILL),
    "hand_over": lambda s: s.account.hand_over(s.leases[0], PREFILL, DECODE),
    "truncate": lambda s: s.account.truncate(s.leases[0], 1, PREFILL),
    "release": lambda s: s.account.release(s.leases[0], PREFILL),
    "release_quarantined": lambda s: s.account.release(s.leases[0], PREFILL, quarantine=True),
    "reassign": lambda s: s.account.reassign(PREFILL, COORDINATOR),
    "clear_quarantine": lambda s: s.account.clear_quarantine(DECODE),
    "counts": lambda s: s.account.counts(),
}


@dataclass
class Findings:
    deaths: int = 0
    repairs: int = 0
    wrong: list[str] = field(default_factory=list)


def signal_before(instruction: int, number: signal.Signals) -> None:
    """Arms this process: it sends itself the signal once it has run that many instructions in semipd/memory."""
    left = instruction

    def step(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal left
        if event == "call":
            if not frame.f_code.co_filename.startswith(ROOM):
                return None
            frame.f_trace_opcodes = True
        elif event in ("opcode", "line"):
            if left == 0:
                os.kill(os.getpid(), number)
            left -= 1
        return step

    sys.settrace(step)


def lives_through(scene: Scene, operation: Callable[[Scene], object], instruction: int) -> bool:
    """Returns whether the operation was over before that instruction came."""
    child = os.fork()
    if child == 0:
        signal_before(instruction, signal.SIGKILL)
        operation(scene)
        sys.settrace(None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status not in (0, signal.SIGKILL):
        raise RuntimeError(f"the child ended with status {status}")
    return status == 0


def wrong_with(scene: Scene, before: list[State], after: list[State]) -> str | None:
    """Says in words what contradicts "the old state or the new one"."""
    account = scene.account
    try:
        account.check()
    except AccountCorrupt as error:
        return str(error)
    counts = account.counts()
    if counts.free + counts.owned + counts.quarantined != PAGES:
        return f"{counts} do not add up"
    for old, new in zip(before, after, strict=True):
        now = scene.state_of(old[0])
        if now not in (old, new):
            return f"{now} is neither {old} nor {new}"
    # Whoever comes next finds everything that is free, and each page once.
    late = account.open(COORDINATOR)
    pages = account.take(late, counts.free, COORDINATOR)
    if pages is None or len(np.unique(pages)) != counts.free or account.free_pages != 0:
        return "free pages can't be taken"
    return None


def die_everywhere(name: str, operation: Callable[[Scene], object], set_up: Callable[[], Scene]) -> Findings:
    done = set_up()
    opened = operation(done)
    known = [*done.leases, opened] if name == "open" and isinstance(opened, int) else list(done.leases)
    untouched = Scene.set_up()
    before = [untouched.state_of(lease) for lease in known]
    after = [done.state_of(lease) for lease in known]
    found = Findings()
    lived = False
    while not lived:
        scene = set_up()
        lived = lives_through(scene, operation, found.deaths)
        problem = wrong_with(scene, before, after)
        if problem is not None:
            found.wrong.append(f"{name}, killed before instruction {found.deaths}: {problem}")
        found.repairs += scene.account.repairs
        found.deaths += not lived
    return found


def stand_still(fd: int, size: int) -> None:
    """Stops (SIGSTOP) when a lease is opened and the lock still in hand."""
    account = PageAccount.attach(SharedArena("account", fd, size).buffer)

    def stop(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code is CriticalSection.__exit__.__code__:
            os.kill(os.getpid(), signal.SIGSTOP)

    sys.settrace(stop)
    account.open(PREFILL)


def main() -> None:
    findings = {name: die_everywhere(name, operation, Scene.set_up) for name, operation in OPERATIONS.items()}
    late_in_take = findings["take"].deaths * 4 // 5

    def half_taken() -> Scene:
        """Somebody died in the middle of a take, with the lock in hand: whoever comes next must repair."""
        scene = Scene.set_up()
        lives_through(scene, OPERATIONS["take"], late_in_take)
        return scene

    findings["repair"] = die_everywhere("repair", OPERATIONS["counts"], half_taken)
    print(json.dumps({name: asdict(found) for name, found in findings.items()}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["stand-still"]:
        stand_still(*map(int, sys.argv[2:]))
    else:
        main()
