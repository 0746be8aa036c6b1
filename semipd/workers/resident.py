"""The resident: loads the weights once and owns the KV pool, the page account and the control block.

It hands them to every process that connects. It computes nothing after loading, and outlives every worker. On a GPU it
is no MPS client, so a worker's illegal access, which ends all clients, does not reach it.

usage: python -m semipd.wire.child semipd.workers.resident --run-dir DIR      (started by the coordinator)
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import torch

from semipd.core.config import PAGE_SIZE, ServerConfig
from semipd.core.errors import ConfigError, StartError
from semipd.core.model import ModelConfig
from semipd.engine.layout import weight_layout
from semipd.engine.loading import fill_dummy, load_checkpoint, read_model_config
from semipd.memory.account import PageAccount
from semipd.memory.arenas import SharedArena
from semipd.memory.control import CONTROL_BYTES
from semipd.memory.hashing import content_hash, dummy_hash, host_bytes
from semipd.memory.manifest import (
    ACCOUNT,
    CONTROL,
    POOL,
    WEIGHTS,
    Arena,
    ArenaEntry,
    Manifest,
    PoolLayout,
    TensorEntry,
    send,
)
from semipd.memory.tensors import DTYPES, lay_out, pool_bytes, weights_over
from semipd.models import model_directory
from semipd.wire.sockets import RunDir
from semipd.workers.resident_memory import ResidentMemory, memory_of
from semipd.workers.sizing import pool_pages

AnyArena = TypeVar("AnyArena", bound=Arena)

DUMMY_SEED = 0

SPARE_LEASES = 64
"""Leases beyond `max_running`, for sequences that are prefilled while the decode batch is full."""

SEND_S = 5.0
"""Seconds for one process to read the manifest. Others wait meanwhile."""


def emit(event: str, **what: object) -> None:
    """Tells the parent of an event: one JSON object a line."""
    print(json.dumps({"event": event, **what}), flush=True)


def emit_percents(event: str) -> Callable[[int, int], None]:
    """Returns a progress function that emits the event once for each percent."""
    said = -1

    def progress(done: int, total: int) -> None:
        nonlocal said
        percent = 100 * done // max(1, total)
        if percent != said:
            said = percent
            emit(event, done=done, total=total)

    return progress


class Resident:
    """Holds everything in memory once `load` has run. `stack` owns it."""

    def __init__(self, config: ServerConfig, stack: ExitStack) -> None:
        self._config = config
        self._stack = stack
        self._directory = model_directory(config.model)
        self.arenas: list[Arena] = []

    def load(self) -> Manifest:
        """Loads the weights and lays out the other arenas. Raises StartError, which says what to change."""
        if not self._directory.is_dir():
            raise ConfigError(f"--model: {self._directory} is no directory")
        memory = memory_of(self._config.device)
        model = read_model_config(self._directory)
        dtype = memory.dtype(model) if self._config.dtype == "auto" else self._config.dtype
        tensors, size = lay_out([(s.name, s.shape, s.dtype) for s in weight_layout(model, dtype)])
        weights = weights_over(self._hold(memory.arena(WEIGHTS, size)), tensors)
        content = self._fill(memory, model, weights, tensors)
        pages = pool_pages(self._config, model, DTYPES[dtype].itemsize, memory.available_bytes())
        pool = PoolLayout(pages, PAGE_SIZE, model.layers, model.kv_heads, model.head_dim, dtype)
        self._hold(memory.arena(POOL, pool_bytes(pool)))
        leases = self._config.max_running + SPARE_LEASES
        account = self._hold(SharedArena.create(ACCOUNT, PageAccount.bytes_needed(pages, leases)))
        PageAccount.create(account.buffer, pages, leases)
        self._hold(SharedArena.create(CONTROL, CONTROL_BYTES))
        emit("ready", content_hash=content, weights_bytes=size, pool_bytes=pool_bytes(pool), **memory.report())
        return Manifest(content, tuple(map(ArenaEntry.of, self.arenas)), tensors, pool)

    def _fill(
        self, memory: ResidentMemory, model: ModelConfig, into: dict[str, torch.Tensor], tensors: Sequence[TensorEntry]
    ) -> str:
        """Fills the weights and returns their hash."""
        if self._config.load_format == "dummy":
            fill_dummy(model, into, DUMMY_SEED)
            memory.finish_loading()
            return dummy_hash(tensors, DUMMY_SEED)
        with memory.staging() as staging:
            load_checkpoint(self._directory, model, into, emit_percents("loading"), staging)
            found = content_hash(into, emit_percents("hashing"), staging.fetch if staging else host_bytes)
        memory.finish_loading()
        return found

    def _hold(self, arena: AnyArena) -> AnyArena:
        self._stack.push(arena)
        self.arenas.append(arena)
        return arena


def listen(path: Path) -> socket.socket:
    """Returns a Unix socket that only this user may open."""
    path.unlink(missing_ok=True)  # the socket of a resident that was lost
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen(16)
    return listener


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    run_dir = RunDir(parser.parse_args().run_dir)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ExitStack() as stack:
        try:
            resident = Resident(ServerConfig.from_json(run_dir.config.read_text()), stack)
            # Bound before "ready" is emitted, because a process that hears of it may connect at once.
            listener = stack.enter_context(listen(run_dir.resident_socket))
            manifest = resident.load()
        except StartError as error:
            emit("failed", error=str(error), kind=type(error).__name__)
            return 1
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(SEND_S)
                try:
                    send(connection, manifest, resident.arenas)
                except OSError:
                    continue  # it died, or stopped, while it connected


if __name__ == "__main__":
    sys.exit(main())
