"""A worker's hold on the resident's memory: weights, pool and account, mapped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from semipd.memory.account import PageAccount
from semipd.memory.manifest import ACCOUNT, POOL, WEIGHTS, Manifest, receive
from semipd.memory.tensors import pool_over, weights_over
from semipd.wire.sockets import RunDir


@dataclass(frozen=True, slots=True)
class Attached:
    manifest: Manifest
    weights: dict[str, torch.Tensor]
    """By the names of `engine.layout`. Shared with everybody and mapped read-only: a write ends the process."""
    pool: torch.Tensor
    account: PageAccount


@contextmanager
def attach(run_dir: Path) -> Iterator[Attached]:
    """Raises HandOverFailed where the resident is not there."""
    with ExitStack() as stack:
        manifest, arenas = receive(stack, RunDir(run_dir).resident_socket)
        yield Attached(
            manifest=manifest,
            weights=weights_over(arenas[WEIGHTS], manifest.tensors),
            pool=pool_over(arenas[POOL], manifest.pool),
            account=PageAccount.attach(arenas[ACCOUNT].buffer),
        )
