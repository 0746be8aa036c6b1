"""The measurements of `semipd profile` on a played device: what is launched, not how long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from semipd.core.model import parse_model_config
from semipd.engine.cuda.bench import PROBES, bench_batch
from semipd.engine.cuda.decode import CudaDecodeBatch
from semipd.engine.cuda.engine import CudaEngine, CudaPendingPrefill
from semipd.engine.cuda.graphs import BucketGraphs
from semipd.engine.cuda.mixed import BUCKETS
from semipd.engine.cuda.prefill import CudaPrefill
from semipd.engine.cuda.profiling import DecodeMeasurements, PrefillMeasurements, answer
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
MARK_MS = 50.0
"""Time from one event to the next by the played device's clock; a step or a pass has two."""
WARM, COUNTED = 3, 5
"""Steps or passes of so long: in a quarter of a second, and at least; one more is where what counts begins."""
PASSES = PROBES + 1 + COUNTED
"""Passes of prefill, where nothing grows: the probes warm the device up, too."""
TURNS_WARM, TURNS_COUNTED = 2, 5
"""Rounds of one of each."""


class Event:
    """An event of a device whose clock ticks when something is recorded."""

    ticks = 0

    def __init__(self, **_: object) -> None: ...

    def record(self, *_: object) -> None:
        Event.ticks += 1
        self._at = Event.ticks

    def query(self) -> bool:
        return True

    def elapsed_time(self, later: Event) -> float:
        return MARK_MS * (later._at - self._at)


@pytest.fixture
def pool() -> torch.Tensor:
    return torch.zeros(pool_shape(parse_model_config(TINY), PAGES))


@pytest.fixture
def engine(played_device: None, monkeypatch: pytest.MonkeyPatch, pool: torch.Tensor) -> CudaEngine:
    monkeypatch.setattr(BucketGraphs, "capture_one", lambda *_: None)  # what is not captured runs launch by launch
    monkeypatch.setattr(torch.cuda, "Event", Event)
    model = parse_model_config(TINY)
    weights = {spec.name: torch.empty(spec.shape) for spec in weight_layout(model, "float32")}
    fill_dummy(model, weights, 0)
    return CudaEngine(model, weights, pool, max_batch_tokens=64, max_running=4, max_context=256)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Launched:
    """Notes each step: rows, tokens of context over all of them, and start and tokens of each prompt; and of each pass,
    without rows."""
    found: Launched = []
    step, prepare = CudaDecodeBatch.step, CudaPrefill.prepare

    def noted(batch: CudaDecodeBatch, *given: Any, prompts: Sequence[Any] = (), **named: Any) -> Any:
        found.append((len(batch), batch.context_tokens(), [(item.start, len(item.tokens)) for item in prompts]))
        return step(batch, *given, prompts=prompts, **named)

    def noted_pass(prefill: CudaPrefill, items: Sequence[Any]) -> Any:
        found.append((0, 0, [(item.start, len(item.tokens)) for item in items]))
        return prepare(prefill, items)

    monkeypatch.setattr(CudaDecodeBatch, "step", noted)
    monkeypatch.setattr(CudaPrefill, "prepare", noted_pass)
    return found


def alone(phase: DecodeMeasurements | PrefillMeasurements, **sizes: int) -> float:
    return float(answer(phase, {"do": "alone", "sms": 4, **sizes})["ms"])


def steps(launched: Launched) -> list[tuple[int, int]]:
    """Rows and tokens of context."""
    return [(rows, context) for rows, context, _ in launched if rows]


def test_a_step_is_measured_when_the_device_is_warm_and_at_its_context(engine: CudaEngine, launched: Launched) -> None:
    assert alone(DecodeMeasurements(engine), rows=3, context=100) == 2 * MARK_MS
    first = 100 - WARM - (COUNTED + 1) // 2
    whole = [(3, 3 * (first + number)) for number in range(WARM + 1 + COUNTED)]
    assert steps(launched) == [*[(3, 3 * (100 + number)) for number in range(PROBES)], *whole], "nobody leaves"
    counted = [context / 3 for _, context in whole[WARM + 1 :]]
    assert sum(counted) / COUNTED == 100


def test_a_step_of_short_contexts_does_not_begin_below_one_token(engine: CudaEngine, launched: Launched) -> None:
    assert alone(DecodeMeasurements(engine), rows=2, context=3) > 0
    assert steps(launched)[PROBES] == (2, 2)


def test_a_step_near_the_longest_context_stays_within_it(engine: CudaEngine, launched: Launched) -> None:
    assert alone(DecodeMeasurements(engine), rows=2, context=256) > 0
    assert max(context for _, context in steps(launched)) == 2 * 255


def test_every_row_is_fed_another_token(engine: CudaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = []
    add = CudaDecodeBatch.add

    def noted(batch: CudaDecodeBatch, lease: int, context: int, table: Any, sampling_input: Any) -> None:
        fed.append(sampling_input.output)
        add(batch, lease, context, table, sampling_input)

    monkeypatch.setattr(CudaDecodeBatch, "add", noted)
    assert alone(DecodeMeasurements(engine), rows=4, context=20) > 0
    assert len(set(fed[:4])) == 4
    assert all(0 <= token < 1000 for (token,) in fed)


def test_a_mixed_pass_has_its_rows_and_its_prompt_each_time(engine: CudaEngine, launched: Launched) -> None:
    assert alone(DecodeMeasurements(engine), rows=3, context=20, tokens=24, start=16) == 2 * MARK_MS
    assert len(launched) == PROBES + WARM + 1 + COUNTED
    assert all((rows, prompts) == (3, [(16, 24)]) for rows, _, prompts in launched)


@pytest.mark.thorough
def test_by_turns_there_is_one_step_and_one_pass(engine: CudaEngine, launched: Launched) -> None:
    asked = {"do": "turns", "rows": 3, "context": 100, "tokens": 40}
    assert answer(DecodeMeasurements(engine), asked) == {"step_ms": 2 * MARK_MS, "pass_ms": 2 * MARK_MS}
    rounds = TURNS_WARM + 1 + TURNS_COUNTED
    assert len(launched) == 2 * (PROBES + rounds)
    assert all(rows == 3 and not prompts for rows, _, prompts in launched[::2])
    assert launched[1::2] == [(0, 0, [(0, 40)])] * (PROBES + rounds)
    first = 100 - TURNS_WARM - (TURNS_COUNTED + 1) // 2
    assert steps(launched)[PROBES:] == [(3, 3 * (first + number)) for number in range(rounds)]
    batch = bench_batch(engine)
    assert (len(batch), batch.flying) == (0, 0)


def test_turns_are_not_for_the_process_of_prefill(engine: CudaEngine) -> None:
    with pytest.raises(ValueError, match="where decode is"):
        answer(PrefillMeasurements(engine), {"do": "turns", "rows": 3, "context": 100, "tokens": 40})


def test_what_is_not_finite_is_no_measurement_and_the_next_goes_on(engine: CudaEngine, pool: torch.Tensor) -> None:
    pool.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"0 of 2 sequences.*not finite"):
        alone(DecodeMeasurements(engine), rows=2, context=30)
    pool.zero_()
    assert alone(DecodeMeasurements(engine), rows=2, context=30) > 0


@pytest.mark.thorough
def test_a_mixed_pass_is_measured_as_the_server_would_run_it(
    engine: CudaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured: list[tuple[int, int]] = []
    run: list[int] = []
    launch = BucketGraphs.run
    monkeypatch.setattr(BucketGraphs, "capture_one", lambda _, bucket, sms: captured.append((bucket, sms)))
    monkeypatch.setattr(BucketGraphs, "is_captured", lambda _, bucket: (bucket, 4) in captured)

    def noted(graphs: BucketGraphs, bucket: int) -> None:
        run.append(bucket)
        launch(graphs, bucket)

    monkeypatch.setattr(BucketGraphs, "run", noted)
    assert alone(DecodeMeasurements(engine), rows=3, context=20, tokens=62, start=0) > 0
    assert {bucket for bucket, _ in captured} == set(BUCKETS), "which is taken for a size depends on the times of all"
    assert run == [96] * (PROBES + WARM + 1 + COUNTED)


@pytest.mark.thorough
def test_each_measurement_leaves_an_empty_batch_to_the_next(engine: CudaEngine, launched: Launched) -> None:
    phase = DecodeMeasurements(engine)
    for sizes in ({"tokens": 40, "start": 0}, {}, {"tokens": 8, "start": 30}):
        launched.clear()
        assert alone(phase, rows=2, context=33, **sizes) > 0
        assert launched[0][:2] == (2, 66)
        batch = bench_batch(engine)
        assert (len(batch), batch.flying, batch.prompt_outcomes()) == (0, 0, [])


def test_what_the_pool_can_not_hold_is_refused_and_the_next_goes_on(engine: CudaEngine, launched: Launched) -> None:
    phase = DecodeMeasurements(engine)
    with pytest.raises(ValueError, match=f"2 sequences of 150 tokens and a prompt of 400 need 45 pages.*{PAGES}"):
        alone(phase, rows=2, context=150, tokens=200, start=200)
    assert launched == []
    assert alone(phase, rows=2, context=100, tokens=20, start=0) > 0


def test_where_memory_runs_out_the_next_goes_on(engine: CudaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    phase = DecodeMeasurements(engine)

    def runs_out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(CudaDecodeBatch, "step", runs_out)
        with pytest.raises(torch.OutOfMemoryError):
            alone(phase, rows=2, context=30, tokens=20, start=0)
    assert alone(phase, rows=2, context=30, tokens=20, start=0) > 0


def test_a_prefill_pass_is_measured_after_what_is_in_the_pool(engine: CudaEngine, launched: Launched) -> None:
    assert alone(PrefillMeasurements(engine), tokens=20, start=30) == 2 * MARK_MS
    assert launched == [(0, 0, [(30, 20)])] * PASSES


def test_a_pass_is_launched_while_another_is_on_the_device(engine: CudaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def note(name: str) -> None:
        method = getattr(CudaPendingPrefill, name)

        def noted(*given: Any) -> Any:
            done.append(name)
            return method(*given)

        monkeypatch.setattr(CudaPendingPrefill, name, noted)

    note("launch")
    note("finish")
    assert alone(PrefillMeasurements(engine), tokens=20, start=0) > 0
    assert done == ["launch", *["launch", "finish"] * (PASSES - 1)]


def test_a_prompt_that_the_pool_can_not_hold_is_refused(engine: CudaEngine) -> None:
    with pytest.raises(ValueError, match=f"700 tokens need 44 pages; there are {PAGES}"):
        alone(PrefillMeasurements(engine), tokens=60, start=640)
