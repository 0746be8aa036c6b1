"""The resident: loads the weights once, owns the KV pool and the page account, and hands them to whoever connects.

It computes nothing after loading and outlives every worker.

usage: python -m semipd.workers.resident --run-dir DIR      (started by the coordinator)
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from semipd.core.config import PAGE_SIZE, ServerConfig
from semipd.core.errors import ConfigError, StartError
from semipd.core.model import ModelConfig
from semipd.engine.layout import weight_layout
from semipd.engine.loading import fill_dummy, load_checkpoint, read_model_config
from semipd.memory.account import PageAccount
from semipd.memory.arenas import SharedArena, available_bytes
from semipd.memory.manifest import ACCOUNT, POOL, WEIGHTS, Manifest, PoolLayout, send
from semipd.memory.tensors import DTYPES, content_hash, lay_out, pool_bytes, weights_over
from semipd.wire.process import die_with_parent, started_by
from semipd.wire.sockets import RunDir
from semipd.workers.sizing import model_directory, pool_pages

SPARE_LEASES = 64
"""For sequences that are being prefilled while the decode batch is full."""

SEND_S = 5.0
"""For one process to read the manifest; others wait meanwhile."""


def say(event: str, **what: object) -> None:
    """To the parent: one JSON object a line."""
    print(json.dumps({"event": event, **what}), flush=True)


def percents(event: str) -> Callable[[int, int], None]:
    """Says the event with each percent of progress, not oftener."""
    said = -1

    def progress(done: int, total: int) -> None:
        nonlocal said
        percent = 100 * done // max(1, total)
        if percent != said:
            said = percent
            say(event, done=done, total=total)

    return progress


class Resident:
    """Everything in memory, once `load` has run; `stack` owns it."""

    def __init__(self, config: ServerConfig, stack: ExitStack) -> None:
        self._config = config
        self._stack = stack
        self._directory = model_directory(config)
        self.arenas: list[SharedArena] = []

    def load(self) -> Manifest:
        """Raises StartError, telling what to change."""
        if not self._directory.is_dir():
            raise ConfigError(f"--model: {self._directory} is no directory")
        model = read_model_config(self._directory)
        dtype = "float32" if self._config.dtype == "auto" else self._config.dtype
        specs = weight_layout(model, dtype)
        tensors, size = lay_out([(s.name, s.shape, s.dtype) for s in specs])
        weights = weights_over(self._arena(WEIGHTS, size), tensors)
        self._fill(model, weights)
        pool = self._pool(model, dtype)
        leases = self._config.max_running + SPARE_LEASES
        account = self._arena(ACCOUNT, PageAccount.bytes_needed(pool.pages, leases))
        PageAccount.create(account.buffer, pool.pages, leases)
        manifest = Manifest(
            content_hash(weights, percents("hashing")), tuple((a.name, a.bytes) for a in self.arenas), tensors, pool
        )
        say("ready", content_hash=manifest.content_hash, weights_bytes=size, pool_bytes=pool_bytes(pool))
        return manifest

    def _fill(self, model: ModelConfig, weights: dict[str, torch.Tensor]) -> None:
        if self._config.load_format == "dummy":
            fill_dummy(model, weights, seed=0)
        else:
            load_checkpoint(self._directory, model, weights, percents("loading"))

    def _pool(self, model: ModelConfig, dtype: str) -> PoolLayout:
        pages = pool_pages(self._config, model, DTYPES[dtype].itemsize, available_bytes())
        layout = PoolLayout(pages, PAGE_SIZE, model.layers, model.kv_heads, model.head_dim, dtype)
        self._arena(POOL, pool_bytes(layout))
        return layout

    def _arena(self, name: str, size: int) -> SharedArena:
        arena = self._stack.enter_context(SharedArena.create(name, size))
        self.arenas.append(arena)
        return arena


def listen(path: Path) -> socket.socket:
    """A Unix socket that only we may open."""
    path.unlink(missing_ok=True)  # of a resident that was lost
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
    die_with_parent(started_by())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ExitStack() as stack:
        try:
            resident = Resident(ServerConfig.from_json(run_dir.config.read_text()), stack)
            # Bound before it is ready is said: who hears it may connect at once.
            listener = stack.enter_context(listen(run_dir.resident_socket))
            manifest = resident.load()
        except StartError as error:
            say("failed", error=str(error), kind=type(error).__name__)
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
