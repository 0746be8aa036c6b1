"""A worker's hold on the resident's memory: weights, pool, account and control block, mapped."""

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
class Attached:
    """Tensors are on the device that the resident has its memory on: the CPU, or device 0 of this process."""

    manifest: Manifest
    weights: dict[str, torch.Tensor]
    """By the names of `engine.layout`. Shared with everybody: in shared memory they are mapped read-only, and a write
    ends the process; on a GPU nothing stops one, and it would be everybody's."""
    pool: torch.Tensor
    account: PageAccount
    control: ControlBlock


@contextmanager
def attach(run_dir: Path) -> Iterator[Attached]:
    """Raises HandOverFailed where the resident is not there, or its memory can't be mapped."""
    with ExitStack() as stack:
        manifest, arenas = receive(stack, RunDir(run_dir).resident_socket)
        yield Attached(
            manifest=manifest,
            weights=weights_over(arenas[WEIGHTS], manifest.tensors),
            pool=pool_over(arenas[POOL], manifest.pool),
            account=PageAccount.attach(shared(arenas, ACCOUNT).buffer),
            control=ControlBlock(shared(arenas, CONTROL).buffer),
        )
