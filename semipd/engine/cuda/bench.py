"""Measures how long a decode step and a prefill pass take: the engine alone, in this process.

All times are *sustained*: the passes follow one another without a pause, each is launched while the one before is on
the device, and others have run for a while before those that count. A GPU under load reaches its power limit, and its
clock falls. A burst of a few passes is over before that. Passes over zeros do not reach it, because zeros cost less
power than other numbers.
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
"""Seconds of work without a pause: before anything counts, and the least that counts."""
TURNS_COUNTED_S = 0.5
"""The same as COUNTED_S, where a step and a pass make one round."""
FEWEST = 5
"""The least number of rounds that count, however long one takes."""
PROBES = 4
"""The number of rounds that are timed first, to choose how many others there are."""
FASTEST_S = 0.0004
"""Seconds of the fastest step that is believed, whatever an event says."""
SURELY = 0.8
"""The part of the fastest probe's time that no step falls below."""

RoundEnds = tuple[torch.cuda.Event, ...]
"""The events at which the parts of one round ended on the device. A round is a step, a pass or both."""

SPARE_BYTES = 8 << 30
"""Bytes of GPU memory that are left free beside weights and pool."""


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
    """Opens an engine with random weights, and a pool of random keys and values, in this process's memory.

    The pool is for `pool_tokens` tokens, or for as many as the device has room for.
    """
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
    """Returns the median time on the device from one step's end to the next one's, in ms.

    The step has `rows` sequences of about `context` tokens each, and samples greedily.
    """

    def begin(first: int, grown: int) -> Callable[[], RoundEnds]:
        batch, _ = fill_batch(engine, rows, first, grown)
        engine.use_sms(sms)
        capture_step(engine, batch, rows)
        return lambda: _step(engine, batch)

    (step_ms,) = _medians(_sustained(engine, rows, context, begin, COUNTED_S))
    return step_ms


def mixed_step_ms(engine: CudaEngine, rows: int, context: int, tokens: int, sms: int = 0, start: int = 0) -> float:
    """Returns the same as `decode_step_ms`, with a prompt in each step.

    The step computes `tokens` tokens of the prompt, after `start` tokens that are in the pool, and samples its next
    token.
    """

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
    """Returns the median times of a decode step and of a prefill pass over one prompt, in ms.

    They run one after the other by turns on the whole device. Each time is from the end of the other to its own end.
    """

    def begin(first: int, grown: int) -> Callable[[], RoundEnds]:
        batch, free = fill_batch(engine, rows, first, grown, tokens)
        capture_step(engine, batch, rows)
        capture_pass(engine, tokens)
        run_pass = _passes(engine, prompt_item(engine, tokens, 0, free))
        return lambda: (*_step(engine, batch), *run_pass())

    step_ms, pass_ms = _medians(_sustained(engine, rows, context, begin, TURNS_COUNTED_S))
    return step_ms, pass_ms


def prefill_ms(engine: CudaEngine, tokens: int, sms: int = 0, start: int = 0) -> float:
    """Returns the median time on the device from one pass's end to the next one's, in ms.

    Each pass is over one prompt of `tokens` tokens, and samples its next token.

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
    """Returns the ends of the rounds that count.

    `begin(context, grown)` fills the batch with sequences of `context` tokens that may grow to `grown`. It returns a
    function that launches a round, with a decode step in it. The sequences grow by a token a round; they have `context`
    tokens in the middle of the rounds that count. Raises ValueError where they can't grow so far, and where some leave
    the batch because what the model computes is not finite.
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
    """Returns how many decode steps fit into `seconds` at most, on `sms` SMs. The batch is empty before and after.

    Raises ValueError where the pool is too small."""
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
    """Returns how many rounds warm the device up, and how many are then counted.

    Under load a round takes longer than a probe does, so the rounds take longer than WARM_S and `counted_s` in all.
    """
    fastest_s = _fastest_s(probes)
    return ceil(WARM_S / fastest_s), max(FEWEST, ceil(counted_s / fastest_s))


def _launched(launch: Callable[[], RoundEnds], rounds: int) -> list[RoundEnds]:
    """Launches the rounds, waits for the device and returns their ends."""
    ends = [launch() for _ in range(rounds)]
    torch.cuda.synchronize()
    return ends


def _medians(ends: Sequence[RoundEnds]) -> list[float]:
    """Returns the median time of each part of a round, in ms, from the end of the part before.

    The first round only says where the second begins.
    """
    rounds = [[a.elapsed_time(b) for a, b in pairwise((before[-1], *now))] for before, now in pairwise(ends)]
    return [median(part) for part in zip(*rounds, strict=True)]


def _step(engine: CudaEngine, batch: CudaDecodeBatch, prompts: Sequence[PrefillItem] = ()) -> RoundEnds:
    """Launches a step and waits for the one before."""
    batch.step(SilentPulse(), prompts=prompts)
    return (_mark(engine),)


def _passes(engine: CudaEngine, item: PrefillItem) -> Callable[[], RoundEnds]:
    """Returns a function that launches a pass and waits for the one before, as the worker does."""
    pending = deque[Any]()

    def launch() -> RoundEnds:
        pending.append(engine.begin_prefill([item]))
        end = _mark(engine)
        if len(pending) > engine.passes_ahead:
            pending.popleft().finish(SilentPulse())
        return (end,)

    return launch


def _mark(engine: CudaEngine) -> torch.cuda.Event:
    """Records an event that comes when all that was launched is done."""
    event = torch.cuda.Event(enable_timing=True)
    event.record(engine.streams.stream)
    return event


# --- inputs --------------------------------------------------------------------------------------------


def fill_batch(
    engine: CudaEngine, rows: int, context: int, grown: int, prompt: int = 0
) -> tuple[CudaDecodeBatch, npt.NDArray[np.int32]]:
    """Fills the batch for measurements, and returns it together with pages for a prompt of `prompt` tokens.

    It has `rows` greedy sequences of `context` tokens that may grow to `grown`, in pages that lie anywhere. Each is fed
    another token. Raises ValueError, with nothing done, where the pool is too small.
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
    """Waits for the device, empties the batch for measurements, and selects all SMs again."""
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
    """Returns the batch for all measurements of an engine. There is one, so that its graphs are kept."""
    if engine not in _batches:
        _batches[engine] = engine.decode_batch(MIXED_TOKENS)
    return _batches[engine]


def prompt_item(
    engine: CudaEngine, tokens: int, start: int, table: npt.NDArray[np.int32], lease: int = 0
) -> PrefillItem:
    """Returns the last `tokens` tokens of a prompt, chosen at random, after `start` others. Its next token is
    sampled."""
    sampling = SamplingInput(SamplingParams(temperature=0.0), StoppingParams(max_tokens=100), (), ())
    ids = np.random.default_rng(2).integers(0, engine.vocab_size, tokens).tolist()
    return PrefillItem(lease, ids, start, table, sampling, start + tokens)


def any_pages(engine: CudaEngine, tokens: int) -> npt.NDArray[np.int32]:
    """Returns pages anywhere in the pool for `tokens` tokens of one sequence. Raises ValueError where it is too
    small."""
    needed = pages_for(tokens)
    if needed > engine.pages:
        raise ValueError(f"{tokens} tokens need {needed} pages; there are {engine.pages}")
    return np.random.default_rng(1).permutation(engine.pages)[:needed].astype(np.int32)


def capture_step(engine: CudaEngine, batch: CudaDecodeBatch, rows: int) -> None:
    """Captures the graph of a step of `rows` rows, on the SMs in use."""
    _capture(engine, batch.graphs, rows)


def capture_pass(engine: CudaEngine, tokens: int) -> None:
    """Captures the graph of a prefill pass over `tokens` tokens, on the SMs in use, where there is one."""
    _capture(engine, engine.open_prefill().graphs, tokens)


def _capture(engine: CudaEngine, graphs: BucketGraphs, size: int) -> None:
    _capture_whole(engine, graphs)
    bucket = graphs.bucket(size)
    if bucket is not None:
        graphs.capture_one(bucket, engine.streams.current)


def _capture_whole(engine: CudaEngine, graphs: BucketGraphs) -> None:
    """Captures every graph on the whole device, as a server does: which of them a size takes depends on the times of
    all."""
    for bucket, sms in graphs.missing():
        if sms == engine.streams.all:
            graphs.capture_one(bucket, sms)
