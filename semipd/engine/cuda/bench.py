"""The engine alone, in this process: how long a decode step and a prefill pass take. For benchmarks.

All times are *sustained*: of passes that follow one another without a pause, each launched while the one before is on
the device, when such have run for a while already. A GPU under load comes to its power limit and its clock falls; a
burst of a few passes is over before that, and so is one over zeros, which cost less power than numbers do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from math import ceil, prod
from statistics import median
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch

from semipd.core.config import MIXED_TOKENS, PAGE_SIZE, pages_for
from semipd.core.model import ModelConfig
from semipd.core.request import SamplingParams, StoppingParams
from semipd.engine.cuda.decode import CudaDecodeBatch
from semipd.engine.cuda.engine import CudaEngine
from semipd.engine.cuda.graphs import BucketGraphs
from semipd.engine.cuda.streams import SmSide
from semipd.engine.engine import PrefillItem
from semipd.engine.layout import pool_shape, weight_layout
from semipd.engine.pulse import SilentPulse
from semipd.engine.sampling_result import SamplingInput

WARM_S, COUNTED_S = 0.25, 0.25
"""Of work without a pause: before anything counts, and what counts at least."""
TURNS_COUNTED_S = 0.5
"""As COUNTED_S, where a step and a pass make one round."""
FEWEST = 5
"""Rounds that count, however long one takes."""
PROBES = 4
"""Rounds that tell how many of them the others are."""
FASTEST_S = 0.0004
"""No step is faster, whatever an event says."""
SURELY = 0.8
"""Of the fastest probe's time, what no step falls below."""

RoundEnds = tuple[torch.cuda.Event, ...]
"""Of one round, a step or a pass or both: when each part ended on the device."""

SPARE_BYTES = 8 << 30
"""Left free beside weights and pool."""


@contextmanager
def open_engine(
    model: ModelConfig,
    *,
    max_running: int,
    max_batch_tokens: int,
    dtype: str = "bfloat16",
    pool_tokens: int = 600_000,
    side: SmSide = SmSide.FIRST,
    sms_choices: Sequence[int] = (),
) -> Iterator[CudaEngine]:
    """Random weights and a pool of so many tokens with random keys and values, or of what the device has, in this
    process's memory."""
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
    pool = torch.empty(pool_shape(model, pages), dtype=kind, device=device)
    for of_layer in pool:
        of_layer.normal_(generator=generator)
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


# --- measurements -----------------------------------------------------------------------------------------------------


def decode_step_ms(engine: CudaEngine, rows: int, context: int, sms: int = 0) -> float:
    """Median time on the device from one step's end to the next one's, `rows` sequences at about `context` tokens each,
    greedy."""

    def begin(first: int, grown: int) -> Callable[[], RoundEnds]:
        batch, _ = fill_batch(engine, rows, first, grown)
        engine.use_sms(sms)
        capture_step(engine, batch, rows)
        return lambda: _step(engine, batch)

    (step_ms,) = _medians(_sustained(engine, rows, context, begin, COUNTED_S))
    return step_ms


def mixed_step_ms(engine: CudaEngine, rows: int, context: int, tokens: int, sms: int = 0, start: int = 0) -> float:
    """As `decode_step_ms`, with a prompt in each step: so many tokens of it, after `start` that are in the pool; its
    next token is sampled."""

    def begin(first: int, grown: int) -> Callable[[], RoundEnds]:
        batch, free = fill_batch(engine, rows, first, grown, start + tokens)
        engine.use_sms(sms)
        prompts = [prompt_item(engine, tokens, start, free, lease=rows)]
        assert batch.mixed is not None
        if batch.mixed.bucket(rows, prompts) is not None:
            _capture_whole(engine, batch.mixed.graphs)  # there are none for fewer SMs
        return lambda: _step(engine, batch, prompts)

    (step_ms,) = _medians(_sustained(engine, rows, context, begin, COUNTED_S))
    return step_ms


def turns_ms(engine: CudaEngine, rows: int, context: int, tokens: int) -> tuple[float, float]:
    """Medians of a decode step and of a prefill pass over one prompt, one of each by turns on the whole device: from
    the end of the one to the end of the other."""

    def begin(first: int, grown: int) -> Callable[[], RoundEnds]:
        batch, free = fill_batch(engine, rows, first, grown, tokens)
        capture_step(engine, batch, rows)
        capture_pass(engine, tokens)
        run_pass = _passes(engine, prompt_item(engine, tokens, 0, free))
        return lambda: (*_step(engine, batch), *run_pass())

    step_ms, pass_ms = _medians(_sustained(engine, rows, context, begin, TURNS_COUNTED_S))
    return step_ms, pass_ms


def prefill_ms(engine: CudaEngine, tokens: int, sms: int = 0, start: int = 0) -> float:
    """Median time on the device from one pass's end to the next one's, each over one prompt of so many tokens; its next
    token is sampled.

    `start`: tokens of the prompt that are in the pool already. Raises ValueError where the pool is too small.
    """
    item = prompt_item(engine, tokens, start, any_pages(engine, start + tokens))
    try:
        engine.use_sms(sms)
        capture_pass(engine, tokens)
        run_pass = _passes(engine, item)
        warm, counted = _rounds(_launched(run_pass, PROBES), COUNTED_S)
        ends = _launched(run_pass, max(1, warm - PROBES) + counted)
    finally:
        torch.cuda.synchronize()
        engine.use_sms(0)
    (pass_ms,) = _medians(ends[-counted - 1 :])
    return pass_ms


def _sustained(
    engine: CudaEngine, rows: int, context: int, begin: Callable[[int, int], Callable[[], RoundEnds]], counted_s: float
) -> list[RoundEnds]:
    """The rounds that count. `begin(context, grown)` fills the batch, whose sequences may grow so far, and answers with
    what launches a round, a decode step among others.

    The sequences grow by a token a round; they have `context` tokens in the middle of what counts. Raises ValueError
    where they can't grow so far, and where some leave the batch because what the model computes is not finite.
    """

    def run(first: int, rounds: int) -> list[RoundEnds]:
        if rounds >= engine.max_context:
            raise ValueError(
                f"{rounds} steps for a measurement, and a sequence has {engine.max_context} tokens at most"
            )
        first = max(1, min(first, engine.max_context - rounds))
        try:
            ends = _launched(begin(first, first + rounds), rounds)
            left = len(bench_batch(engine))
            if left < rows:
                raise ValueError(f"{left} of {rows} sequences were left in the end: the others' logits are not finite")
            return ends
        finally:
            empty_batch(engine)

    warm, counted = _rounds(run(context, PROBES), counted_s)
    return run(context - warm - (counted + 1) // 2, warm + counted + 1)[warm:]


def steps_within(engine: CudaEngine, rows: int, context: int, sms: int, seconds: float) -> int:
    """How many decode steps fit into that time at most, on so many SMs. The batch is empty before and after.

    Raises ValueError where the pool has not so many pages."""
    try:
        batch, _ = fill_batch(engine, rows, context, context + PROBES)
        engine.use_sms(sms)
        capture_step(engine, batch, rows)
        return ceil(seconds / (SURELY * _fastest_s(_launched(lambda: _step(engine, batch), PROBES))))
    finally:
        empty_batch(engine)


def _fastest_s(probes: Sequence[RoundEnds]) -> float:
    fastest_ms: float = min(a[-1].elapsed_time(b[-1]) for a, b in pairwise(probes))
    return max(FASTEST_S, fastest_ms / 1e3)


def _rounds(probes: Sequence[RoundEnds], counted_s: float) -> tuple[int, int]:
    """How many of them are to warm the device up, and how many then to count. Under load they take longer than the
    probes do, and so more time in all."""
    fastest_s = _fastest_s(probes)
    return ceil(WARM_S / fastest_s), max(FEWEST, ceil(counted_s / fastest_s))


def _launched(launch: Callable[[], RoundEnds], rounds: int) -> list[RoundEnds]:
    """Waits for the device in the end."""
    ends = [launch() for _ in range(rounds)]
    torch.cuda.synchronize()
    return ends


def _medians(ends: Sequence[RoundEnds]) -> list[float]:
    """Milliseconds of each part of a round, from the end of the part before; the first round is but where it begins."""
    rounds = [[a.elapsed_time(b) for a, b in pairwise((before[-1], *now))] for before, now in pairwise(ends)]
    return [median(part) for part in zip(*rounds, strict=True)]


def _step(engine: CudaEngine, batch: CudaDecodeBatch, prompts: Sequence[PrefillItem] = ()) -> RoundEnds:
    """Launches one and waits for the one before."""
    batch.step(SilentPulse(), prompts=prompts)
    return (_mark(engine),)


def _passes(engine: CudaEngine, item: PrefillItem) -> Callable[[], RoundEnds]:
    """What launches one and waits for the one before, as the worker does."""
    pending = deque[Any]()

    def launch() -> RoundEnds:
        pending.append(engine.begin_prefill([item]))
        end = _mark(engine)
        if len(pending) > engine.passes_ahead:
            pending.popleft().finish(SilentPulse())
        return (end,)

    return launch


def _mark(engine: CudaEngine) -> torch.cuda.Event:
    """When all that was launched is done."""
    event = torch.cuda.Event(enable_timing=True)
    event.record(engine.streams.stream)
    return event


# --- what is measured with --------------------------------------------------------------------------------------------


def fill_batch(
    engine: CudaEngine, rows: int, context: int, grown: int, prompt: int = 0
) -> tuple[CudaDecodeBatch, npt.NDArray[np.int32]]:
    """The batch for measurements, with `rows` greedy sequences at `context` tokens that may grow to `grown`, in pages
    that lie anywhere, each fed another token; and other pages, for a prompt of so many tokens.

    Raises ValueError, with nothing done, where the pool has not so many pages.
    """
    each, others = pages_for(grown), pages_for(prompt)
    needed = rows * each + others
    if needed > engine.pages:
        wanted = f"{rows} sequences of {context} tokens" + (f" and a prompt of {prompt}" if prompt else "")
        raise ValueError(f"{wanted} need {needed} pages; there are {engine.pages}")
    random = np.random.default_rng(0)
    order = random.permutation(engine.pages).astype(np.int32)
    fed = np.resize(random.permutation(engine.vocab_size), rows).tolist()
    batch = bench_batch(engine)
    for row in range(rows):
        sampling = SamplingInput(SamplingParams(temperature=0.0), StoppingParams(max_tokens=1 << 20), (), (fed[row],))
        batch.add(row, context, order[row * each : (row + 1) * each], sampling)
    return batch, order[rows * each : needed]


def empty_batch(engine: CudaEngine) -> None:
    """Waits for the device and takes everything out of the batch for measurements; back to all SMs."""
    torch.cuda.synchronize()
    batch = bench_batch(engine)
    batch.drain(SilentPulse())
    batch.prompt_outcomes()
    for lease in batch.leases():
        batch.remove(lease)
    batch.quiet()
    engine.use_sms(0)


_batches: WeakKeyDictionary[CudaEngine, CudaDecodeBatch] = WeakKeyDictionary()


def bench_batch(engine: CudaEngine) -> CudaDecodeBatch:
    """One batch for all measurements of an engine: its graphs are kept."""
    if engine not in _batches:
        _batches[engine] = engine.decode_batch(MIXED_TOKENS)
    return _batches[engine]


def prompt_item(
    engine: CudaEngine, tokens: int, start: int, table: npt.NDArray[np.int32], lease: int = 0
) -> PrefillItem:
    """The last so many tokens of a prompt, random ones, after `start` others; its next token is sampled."""
    sampling = SamplingInput(SamplingParams(temperature=0.0), StoppingParams(max_tokens=100), (), ())
    ids = np.random.default_rng(2).integers(0, engine.vocab_size, tokens).tolist()
    return PrefillItem(lease, ids, start, table, sampling, start + tokens)


def any_pages(engine: CudaEngine, tokens: int) -> npt.NDArray[np.int32]:
    """For so many tokens of one sequence, anywhere in the pool. Raises ValueError where it has not so many."""
    needed = pages_for(tokens)
    if needed > engine.pages:
        raise ValueError(f"{tokens} tokens need {needed} pages; there are {engine.pages}")
    return np.random.default_rng(1).permutation(engine.pages)[:needed].astype(np.int32)


def capture_step(engine: CudaEngine, batch: CudaDecodeBatch, rows: int) -> None:
    """The graph of a step of so many rows, on the SMs in use."""
    _capture(engine, batch.graphs, rows)


def capture_pass(engine: CudaEngine, tokens: int) -> None:
    """That of a prefill pass over so many tokens, on the SMs in use, where there is one."""
    _capture(engine, engine.open_prefill().graphs, tokens)


def _capture(engine: CudaEngine, graphs: BucketGraphs, size: int) -> None:
    _capture_whole(engine, graphs)
    bucket = graphs.bucket(size)
    if bucket is not None:
        graphs.capture_one(bucket, engine.streams.current)


def _capture_whole(engine: CudaEngine, graphs: BucketGraphs) -> None:
    """Every one on the whole device, as a server has them: which of them a size takes depends on the times of all."""
    for bucket, sms in graphs.missing():
        if sms == engine.streams.all:
            graphs.capture_one(bucket, sms)
