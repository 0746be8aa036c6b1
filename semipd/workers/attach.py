"""Maps the resident's memory into a worker: weights, pool, account and control block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from semipd.memory.account import PageAccount
from semipd.memory.control import ControlBlock
from semipd.memory.manifest import ACCOUNT, CONTROL, POOL, WEIGHTS, Manifest, receive, shared
from semipd.memory.tensors import pool_over, weights_over
from semipd.wire.sockets import RunDir


@dataclass(frozen=True, slots=True)
class AttachedMemory:
    """The resident's memory as a worker uses it.

    Tensors are on the device on which the resident has its memory: the CPU, or device 0 of this process.
    """

    manifest: Manifest
    weights: dict[str, torch.Tensor]
    """Weights by the names of `engine.layout`. All processes share them. In shared memory they are mapped read-only,
    and a write ends the process; on a GPU nothing stops a write, and every process would see it."""
    pool: torch.Tensor
    account: PageAccount
    control: ControlBlock


@contextmanager
def attach(run_dir: Path) -> Iterator[AttachedMemory]:
    """Maps everything inside `with`. Raises HandOverFailed where the resident is not there or its memory can't be
    mapped."""
    with ExitStack() as stack:
        manifest, arenas = receive(stack, RunDir(run_dir).resident_socket)
        yield AttachedMemory(
            manifest=manifest,
            weights=weights_over(arenas[WEIGHTS], manifest.tensors),
            pool=pool_over(arenas[POOL], manifest.pool),
            account=PageAccount.attach(shared(arenas, ACCOUNT).buffer),
            control=ControlBlock(shared(arenas, CONTROL).buffer),
        )
