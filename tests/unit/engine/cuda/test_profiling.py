"""What `semipd profile` has its processes measure, on a played device: what is launched, not how long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from semipd.core.model import parse_model_config
from semipd.engine.cuda.bench import bench_batch
from semipd.engine.cuda.decode import CudaDecodeBatch
from semipd.engine.cuda.engine import CudaEngine
from semipd.engine.cuda.graphs import Graphs
from semipd.engine.cuda.prefill import CudaPrefill
from semipd.engine.cuda.profiling import Decode, Prefill, answer
from semipd.engine.layout import pool_shape, weight_layout
from semipd.engine.loading import fill_dummy

PAGES = 40
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 1000,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
Launched = list[tuple[int, int, list[tuple[int, int]]]]


@pytest.fixture
def engine(played_device: None, monkeypatch: pytest.MonkeyPatch) -> CudaEngine:
    monkeypatch.setattr(Graphs, "capture_one", lambda *_: None)  # what is not captured runs launch by launch
    model = parse_model_config(TINY)
    weights = {spec.name: torch.empty(spec.shape) for spec in weight_layout(model, "float32")}
    fill_dummy(model, weights, 0)
    pool = torch.zeros(pool_shape(model, PAGES))
    return CudaEngine(model, weights, pool, max_batch_tokens=64, max_running=4, max_context=256)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Launched:
    """Of each step: rows, tokens of context over all of them, and start and tokens of each prompt."""
    found: Launched = []
    step = CudaDecodeBatch.step

    def noted(batch: CudaDecodeBatch, *given: Any, prompts: Sequence[Any] = (), **named: Any) -> Any:
        found.append((len(batch), batch.context_tokens(), [(item.start, len(item.tokens)) for item in prompts]))
        return step(batch, *given, prompts=prompts, **named)

    monkeypatch.setattr(CudaDecodeBatch, "step", noted)
    return found


def alone(phase: Decode | Prefill, **sizes: int) -> float:
    return float(answer(phase, {"do": "alone", "sms": 4, **sizes})["ms"])


def test_a_mixed_pass_has_its_rows_and_its_prompt_each_time(engine: CudaEngine, launched: Launched) -> None:
    assert alone(Decode(engine), rows=3, context=20, tokens=24, start=16) > 0
    assert len(launched) > 10
    first = launched[0]
    assert first == (3, 60, [(16, 24)])
    assert launched == [(3, 60 + 3 * number, [(16, 24)]) for number in range(len(launched))], "nobody leaves"


def test_a_mixed_pass_is_measured_as_the_server_would_run_it(
    engine: CudaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured, run = [], []
    monkeypatch.setattr(Graphs, "capture_one", lambda _, bucket, sms: captured.append((bucket, sms)))
    monkeypatch.setattr(Graphs, "ready", lambda _, bucket: (bucket, 4) in captured)
    monkeypatch.setattr(Graphs, "run", lambda _, bucket: run.append(bucket))
    assert alone(Decode(engine), rows=3, context=20, tokens=62, start=0) > 0
    assert captured == [(96, 4)]
    assert len(run) > 1, "how many fit into the time is the machine's matter"
    assert set(run) == {96}


def test_each_measurement_leaves_an_empty_batch_to_the_next(engine: CudaEngine, launched: Launched) -> None:
    phase = Decode(engine)
    for sizes in ({"tokens": 40, "start": 0}, {}, {"tokens": 8, "start": 30}):
        launched.clear()
        assert alone(phase, rows=2, context=33, **sizes) > 0
        assert launched[0][:2] == (2, 66)
        batch = bench_batch(engine)
        assert (len(batch), batch.flying, batch.prompt_outcomes()) == (0, 0, [])


def test_what_the_pool_can_not_hold_is_refused_and_the_next_goes_on(engine: CudaEngine, launched: Launched) -> None:
    phase = Decode(engine)
    with pytest.raises(ValueError, match=f"2 sequences of 100 tokens and a prompt of 400 need 41 pages.*{PAGES}"):
        alone(phase, rows=2, context=100, tokens=200, start=200)
    assert launched == []
    assert alone(phase, rows=2, context=100, tokens=20, start=0) > 0


def test_where_memory_runs_out_the_next_goes_on(engine: CudaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    phase = Decode(engine)

    def runs_out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(CudaDecodeBatch, "step", runs_out)
        with pytest.raises(torch.OutOfMemoryError):
            alone(phase, rows=2, context=30, tokens=20, start=0)
    assert alone(phase, rows=2, context=30, tokens=20, start=0) > 0


def test_a_prefill_pass_is_measured_after_what_is_in_the_pool(
    engine: CudaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    prepare = CudaPrefill.prepare

    def noted(prefill: CudaPrefill, items: Sequence[Any]) -> Any:
        seen.append([(item.start, len(item.tokens)) for item in items])
        return prepare(prefill, items)

    monkeypatch.setattr(CudaPrefill, "prepare", noted)
    assert alone(Prefill(engine), tokens=20, start=30) > 0
    assert len(seen) > 3
    assert all(each == [(30, 20)] for each in seen)
