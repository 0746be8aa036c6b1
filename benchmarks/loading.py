"""A checkpoint on its way from disk to the device, against the disk itself.

usage: python benchmarks/loading.py [--gigabytes 4] [--rounds 3] [--device cpu|cuda] [--folder DIR] [--save]

A checkpoint of random numbers in Llama-3-8B's layer shape (each layer the same) is written and the page cache told to
forget it. Then, in turn: plain reads of the same bytes by as many threads, nothing done to them; the reading half of a
load, through the staging buffers (and, on a GPU, onto the device), nothing done to them; and the load, with every
check. The same again with the files in the page cache. On a CPU the checks are the CPU's work, on a GPU the GPU's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from provenance import save
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.torch import save_file

from semipd.core.model import ModelConfig, parse_model_config
from semipd.engine.checkpoint_mapping import weight_targets
from semipd.engine.layout import weight_layout
from semipd.engine.loading import load_checkpoint
from semipd.engine.staging import BUFFER_BYTES, FileSpan, Staging

LAYER_BYTES = 436_224_000
SHAPE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32_000,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def write_checkpoint(folder: Path, model: ModelConfig) -> list[Path]:
    """One file a layer and one for the rest, with the index that names them."""
    shapes = {spec.name: spec.shape for spec in weight_layout(model, "bfloat16")}
    files: dict[str, dict[str, torch.Tensor]] = {}
    drawn: dict[str, torch.Tensor] = {}  # all layers have the same numbers: drawing them all would take minutes
    for name, target in weight_targets(model).items():
        layer = re.search(r"\.layers\.(\d+)\.", name)
        part = layer[1] if layer else "rest"
        kind = name.replace(f".layers.{part}.", ".layers.")
        if kind not in drawn:
            shape = (target.rows, *shapes[target.name][1:])
            drawn[kind] = torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02)
        files.setdefault(f"model-{part}.safetensors", {})[name] = drawn[kind]
    index = {name: file for file, tensors in files.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    written = []
    for file, tensors in files.items():
        save_file(tensors, folder / file)
        written.append(folder / file)
    return written


def forget(files: list[Path]) -> None:
    """Out of the page cache, as far as the system obliges."""
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


@contextmanager
def opened(files: list[Path]) -> Iterator[list[FileSpan]]:
    """All bytes of the files, in pieces of a buffer's size."""
    with ExitStack() as stack:
        spans = []
        for file in files:
            fd = os.open(file, os.O_RDONLY)
            stack.callback(os.close, fd)
            size = file.stat().st_size
            spans += [FileSpan(fd, at, min(BUFFER_BYTES, size - at)) for at in range(0, size, BUFFER_BYTES)]
        yield spans


def read_plainly(files: list[Path], threads: int) -> None:
    """Each thread into one buffer of its own, again and again."""
    own = threading.local()

    def read(span: FileSpan) -> None:
        if not hasattr(own, "buffer"):
            own.buffer = bytearray(BUFFER_BYTES)
        assert os.preadv(span.fd, [memoryview(own.buffer)[: span.bytes]], span.offset) == span.bytes

    with opened(files) as spans, ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, spans))


def stage(files: list[Path], device: torch.device) -> None:
    with opened(files) as spans, Staging(device) as staging:
        staging.stream(spans, lambda index, read: None)


def seconds(act: Callable[[], None]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; default: the system's own")
    parser.add_argument("--save", action="store_true", help="in benchmarks/results, as loading_DEVICE.json")
    asked = parser.parse_args()
    layers = max(1, round((asked.gigabytes * 1e9 - 0.5e9) / LAYER_BYTES))
    model = parse_model_config({**SHAPE, "num_hidden_layers": layers})
    device = torch.device(asked.device)
    console = Console()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        console.print(f"writing {layers} layers")
        files = write_checkpoint(folder, model)
        total = sum(file.stat().st_size for file in files)
        weights = {
            spec.name: torch.empty(spec.shape, dtype=torch.bfloat16, device=device)
            for spec in weight_layout(model, "bfloat16")
        }
        threads = min(16, max(4, os.cpu_count() or 4))

        def load() -> None:
            with Staging(device) as staging:
                load_checkpoint(folder, model, weights, lambda done, all_: None, staging)

        load()  # what is imported, compiled or page-locked at first
        acts: dict[str, Callable[[], None]] = {
            "read": lambda: read_plainly(files, threads),
            "stage": lambda: stage(files, device),
            "load": load,
        }
        times: dict[str, list[float]] = {f"{what} {how}": [] for how in ("cold", "cached") for what in acts}
        with Progress(console=console) as progress:
            for _ in progress.track(range(asked.rounds), description="rounds"):
                for how in ("cold", "cached"):
                    for what, act in acts.items():
                        if how == "cold":
                            forget(files)
                        times[f"{what} {how}"].append(seconds(act))
    speed = {name: total / statistics.median(found) / 1e9 for name, found in times.items()}
    table = Table("GB/s", "plain reads", "staging", "load", title=f"{total / 1e9:.2f} GB to {asked.device}")
    for how in ("cold", "cached"):
        table.add_row(how, *(f"{speed[f'{what} {how}']:.2f}" for what in acts))
    console.print(table)
    if asked.save:
        found = {"device": asked.device, "bytes": total, "threads": threads, "seconds": times, "gb_s": speed}
        save(f"loading_{asked.device}", found)


if __name__ == "__main__":
    main()
