"""Dies at every instruction of every operation of the page account, and looks at what is left.

For each operation and each n, a child process carries the operation out and kills itself (SIGKILL) before the n-th
bytecode instruction that it runs in semipd/memory. What the parent then finds must be consistent, and be the state
before the operation or the one after it. Prints one JSON object: deaths by operation, repairs, and what was wrong.
It is a program of its own because it forks.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np

import semipd.memory
from semipd.memory.account import Holder, PageAccount, Role
from semipd.memory.errors import AccountCorrupt

PAGES, LEASES = 12, 5
COORDINATOR = Holder(Role.COORDINATOR, 0)
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
    "seize": lambda s: s.account.seize(PREFILL, COORDINATOR),
    "absolve": lambda s: s.account.absolve(DECODE),
    "counts": lambda s: s.account.counts(),
}


def die_before(instruction: int) -> None:
    """Arms this process: SIGKILL before it runs that many instructions in semipd/memory."""
    left = instruction

    def step(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal left
        if event == "call":
            if not frame.f_code.co_filename.startswith(ROOM):
                return None
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
        elif event == "opcode":
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return step

    sys.settrace(step)


def lives_through(scene: Scene, operation: Callable[[Scene], object], instruction: int) -> bool:
    """Whether the operation was over before that instruction came."""
    child = os.fork()
    if child == 0:
        die_before(instruction)
        operation(scene)
        sys.settrace(None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status not in (0, signal.SIGKILL):
        raise RuntimeError(f"the child ended with status {status}")
    return status == 0


def wrong_with(scene: Scene, before: list[State], after: list[State]) -> str | None:
    """What contradicts "the old state or the new one", in words."""
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


def main() -> None:
    deaths, repairs, wrong = {}, 0, []
    for name, operation in OPERATIONS.items():
        done = Scene.set_up()
        known = list(done.leases)
        opened = operation(done)
        if name == "open" and isinstance(opened, int):
            known.append(opened)
        after = [done.state_of(lease) for lease in known]
        instruction = 0
        while True:
            scene = Scene.set_up()
            before = [scene.state_of(lease) for lease in known]
            lived = lives_through(scene, operation, instruction)
            problem = wrong_with(scene, before, after)
            if problem is not None:
                wrong.append(f"{name}, killed before instruction {instruction}: {problem}")
            repairs += scene.account.repairs
            if lived:
                break
            instruction += 1
        deaths[name] = instruction
    print(json.dumps({"deaths": deaths, "repairs": repairs, "wrong": wrong}))


if __name__ == "__main__":
    main()
