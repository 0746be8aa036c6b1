"""The engine alone, in this process: how long a decode step and a prefill pass take. For benchmarks."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from math import prod
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch

from semipd.core.config import MIXED_TOKENS, PAGE_SIZE
from semipd.core.model import ModelConfig
from semipd.core.request import SamplingParams, StoppingParams
from semipd.engine.cuda.decode import CudaDecodeBatch
from semipd.engine.cuda.engine import CudaEngine
from semipd.engine.cuda.lanes import Side
from semipd.engine.engine import PrefillItem
from semipd.engine.layout import pool_shape, weight_layout
from semipd.engine.outcome import Draw

SPARE_BYTES = 8 << 30
"""Left free beside weights and pool."""


def _nothing() -> None:
    return


@contextmanager
def open_engine(
    model: ModelConfig,
    *,
    max_running: int,
    max_batch_tokens: int,
    dtype: str = "bfloat16",
    pool_tokens: int = 600_000,
    side: Side = Side.FIRST,
    sms_choices: Sequence[int] = (),
) -> Iterator[CudaEngine]:
    """Random weights and a zeroed pool of so many tokens, or what the device has, in this process's memory."""
    device, kind = torch.device("cuda", 0), getattr(torch, dtype)
    weights = {}
    generator = torch.Generator(device).manual_seed(0)
    for spec in weight_layout(model, dtype):
        tensor = torch.empty(spec.shape, dtype=kind, device=device)
        if spec.name.endswith("norm"):
            tensor.fill_(1.0)
        else:
            scale = spec.shape[-1] ** -0.5 if len(spec.shape) == 2 else 0.02
            tensor.normal_(0.0, scale, generator=generator)
        weights[spec.name] = tensor
    page_bytes = prod(pool_shape(model, 1)) * kind.itemsize
    free, _ = torch.cuda.mem_get_info()
    pages = min(pool_tokens // PAGE_SIZE, (free - SPARE_BYTES) // page_bytes)
    pool = torch.zeros(pool_shape(model, pages), dtype=kind, device=device)
    yield CudaEngine(
        model,
        weights,
        pool,
        max_batch_tokens=max_batch_tokens,
        max_running=max_running,
        max_context=model.max_context,
        side=side,
        sms_choices=sms_choices,
    )


def decode_step_ms(engine: CudaEngine, rows: int, context: int, steps: int = 30, sms: int = 0) -> float:
    """Median of the time from one step's end to the next one's, `rows` sequences at `context` tokens each, greedy."""
    try:
        batch, _ = fill_batch(engine, rows, context, context + steps + 16)
        engine.use_sms(sms)
        bucket = batch.graphs.bucket(rows)
        assert bucket is not None
        batch.graphs.capture_one(bucket, engine.lanes.current)
        return _between_ms(engine, batch, steps, ())
    finally:
        empty_batch(engine)


def mixed_step_ms(
    engine: CudaEngine, rows: int, context: int, tokens: int, steps: int = 12, sms: int = 0, start: int = 0
) -> float:
    """As `decode_step_ms`, with a prompt in each step: so many tokens of it, after `start` that are in the pool; its
    next token is sampled."""
    try:
        batch, free = fill_batch(engine, rows, context, context + steps + 16, start + tokens)
        engine.use_sms(sms)
        draw = Draw(SamplingParams(temperature=0.0), StoppingParams(max_tokens=100), (), ())
        ids = np.random.default_rng(2).integers(0, 1000, tokens).tolist()
        prompts = [PrefillItem(rows, ids, start, free, draw, start + tokens)]
        assert batch.mixed is not None
        bucket = batch.mixed.bucket(rows, prompts)
        if bucket is not None:
            batch.mixed.graphs.capture_one(bucket, engine.lanes.current)
        return _between_ms(engine, batch, steps, prompts)
    finally:
        empty_batch(engine)


def fill_batch(
    engine: CudaEngine, rows: int, context: int, grown: int, prompt: int = 0
) -> tuple[CudaDecodeBatch, npt.NDArray[np.int32]]:
    """The batch for measurements, with `rows` greedy sequences at `context` tokens that may grow to `grown`, in pages
    that lie anywhere; and others, for a prompt of so many tokens.

    Raises ValueError, with nothing done, where the pool has not so many pages.
    """
    each, others = -(-grown // PAGE_SIZE), -(-prompt // PAGE_SIZE)
    needed = rows * each + others
    if needed > engine.pages:
        wanted = f"{rows} sequences of {context} tokens" + (f" and a prompt of {prompt}" if prompt else "")
        raise ValueError(f"{wanted} need {needed} pages; there are {engine.pages}")
    order = np.random.default_rng(0).permutation(engine.pages).astype(np.int32)
    batch = bench_batch(engine)
    draw = Draw(SamplingParams(temperature=0.0), StoppingParams(max_tokens=1 << 20), (), (1,))
    for row in range(rows):
        batch.add(row, context, order[row * each : (row + 1) * each], draw)
    return batch, order[rows * each : needed]


def empty_batch(engine: CudaEngine) -> None:
    """Waits for the device and takes everything out of the batch for measurements; back to all SMs."""
    batch = bench_batch(engine)
    batch.drain(_nothing)
    batch.prompt_outcomes()
    for lease in batch.leases():
        batch.remove(lease)
    batch.quiet()
    engine.use_sms(0)


def _between_ms(
    engine: CudaEngine, batch: CudaDecodeBatch, steps: int, prompts: Sequence[PrefillItem], warm: int = 5
) -> float:
    """Median time on the device from one step's end to the next one's."""
    ends = []
    for _ in range(steps + warm):
        batch.step(_nothing, prompts=prompts)
        event = torch.cuda.Event(enable_timing=True)
        event.record(engine.lanes.stream)
        ends.append(event)
    torch.cuda.synchronize()
    times: list[float] = [a.elapsed_time(b) for a, b in pairwise(ends[warm:])]
    return statistics.median(times)


_batches: WeakKeyDictionary[CudaEngine, CudaDecodeBatch] = WeakKeyDictionary()


def bench_batch(engine: CudaEngine) -> CudaDecodeBatch:
    """One batch for all measurements of an engine: its graphs are kept."""
    if engine not in _batches:
        _batches[engine] = engine.decode_batch(MIXED_TOKENS)
    return _batches[engine]


def prefill_ms(engine: CudaEngine, tokens: int, repeats: int = 5, sms: int = 0, start: int = 0) -> float:
    """Median time on the device of a pass over one prompt of so many tokens, alone, its first token sampled.

    `start`: tokens of the prompt that are in the pool already.
    """
    prefill = engine.open_prefill()
    engine.use_sms(sms)
    bucket = prefill.graphs.bucket(tokens)
    if bucket is not None:
        prefill.graphs.capture_one(bucket, engine.lanes.current)
    table = np.random.default_rng(1).permutation(engine.pages)[: -(-(start + tokens) // PAGE_SIZE)]
    draw = Draw(SamplingParams(temperature=0.0), StoppingParams(max_tokens=100), (), ())
    ids = np.random.default_rng(2).integers(0, 1000, tokens).tolist()
    times: list[float] = []
    for _ in range(repeats + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record(engine.lanes.stream)
        flight = engine.begin_prefill([PrefillItem(0, ids, start, table.astype(np.int32), draw, tokens)])
        end.record(engine.lanes.stream)
        flight.finish(_nothing)
        times.append(begin.elapsed_time(end))
    engine.use_sms(0)
    return statistics.median(times[2:])
