"""The latency model against what one H200 measured, and its fit to what a server observes."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest

from semipd.core.partition import Mode, Phase
from semipd.core.snapshot import Step
from semipd.policies.latency import BOUND, LatencyModel, Scales, expected_s, refitted, split, with_company

MODEL = LatencyModel()

PREFILL_ALONE = {256: 11.8, 512: 14.1, 1024: 26.3, 2048: 51.5, 8192: 225.0}  # tokens: ms
DECODE_ALONE = {  # (rows, context of each): ms
    (1, 512): 5.0,
    (16, 1024): 6.1,
    (64, 1024): 7.8,
    (128, 1024): 11.4,
    (64, 4096): 13.5,
    (128, 4096): 23.0,
}
BATCHES = ((64, 1024), (64, 4096), (128, 4096))
SIDE_BY_SIDE = {  # (decode SMs, prefill SMs): for each of BATCHES (decode ms, prefill k tokens/s)
    (16, 116): ((31.7, 28.4), (59.7, 28.4), (120.0, 28.7)),
    (32, 100): ((18.8, 25.4), (34.0, 25.3), (65.5, 25.5)),
    (48, 84): ((14.7, 23.3), (26.5, 23.1), (48.4, 23.2)),
    (64, 68): ((12.1, 20.0), (20.7, 19.6), (37.7, 19.9)),
    (80, 52): ((11.6, 15.3), (20.3, 15.0), (34.7, 15.2)),
    (132, 68): ((11.5, 18.6), (18.9, 16.5), (32.5, 15.4)),
}


@pytest.mark.parametrize(("tokens", "ms"), PREFILL_ALONE.items())
def test_prefill_alone(tokens: int, ms: float) -> None:
    assert MODEL.prefill_s(tokens, tokens) * 1000 == pytest.approx(ms, rel=0.15)


@pytest.mark.parametrize(("batch", "ms"), DECODE_ALONE.items())
def test_decode_alone(batch: tuple[int, int], ms: float) -> None:
    rows, context = batch
    assert MODEL.decode_s(rows, rows * context) * 1000 == pytest.approx(ms, rel=0.15)


@pytest.mark.parametrize(("sms", "cells"), SIDE_BY_SIDE.items())
def test_side_by_side(sms: tuple[int, int], cells: tuple[tuple[float, float], ...]) -> None:
    decode, prefill = (100 * n / 132 for n in sms)
    for (rows, context), (ms, rate) in zip(BATCHES, cells, strict=True):
        assert MODEL.decode_s(rows, rows * context, share=decode, other=prefill) * 1000 == pytest.approx(ms, rel=0.15)
        took = MODEL.prefill_s(2048, 2048, share=prefill, other=decode)
        assert 2048 / took / 1000 == pytest.approx(rate, rel=0.15)


def test_undivided_decode_starves_beside_prefill() -> None:
    assert MODEL.decode_s(64, 65536, share=100, other=100) > 10 * MODEL.decode_s(64, 65536)


def test_more_work_or_less_device_never_takes_less() -> None:
    for other in (0.0, 40.0):
        decode = [MODEL.decode_s(32, 32768, share=s, other=other) for s in range(10, 61, 10)]
        assert decode == sorted(decode, reverse=True)
        prefill = [MODEL.prefill_s(2048, 2048, share=s, other=other) for s in range(10, 61, 10)]
        assert prefill == sorted(prefill, reverse=True)
    assert MODEL.prefill_s(512, 4096) > MODEL.prefill_s(512, 512)


def test_nothing_takes_no_time() -> None:
    assert MODEL.prefill_s(0, 0) == MODEL.decode_s(0, 0) == 0.0


def history(truth: LatencyModel, seconds: float = 2.0, noise: float = 0.0, outliers: int = 0) -> list[Step]:
    """Prefill batches one after another beside decode steps, under `truth`."""
    draw = random.Random(1)
    shares = split(48)
    steps: list[Step] = []
    for phase in Phase:
        at = 0.0
        while at < seconds:
            tokens, context = (512, 512) if phase is Phase.PREFILL else (32, 32768)
            rows = 2 if phase is Phase.PREFILL else 32
            step = Step(phase, at, 1.0, rows, tokens, context, shares)
            took = expected_s(truth, step, True) * (1 + draw.uniform(-noise, noise))
            at += took
            steps.append(replace(step, end_s=at, duration_s=took))
    steps.sort(key=lambda s: s.end_s)
    for i in draw.sample(range(len(steps)), outliers):
        steps[i] = replace(steps[i], duration_s=steps[i].duration_s * 50)
    return steps[-256:]


def test_the_fit_finds_a_slower_device_through_noise_and_outliers() -> None:
    truth = replace(MODEL, scales=Scales(prefill_shared=3.0, decode_shared=1.7))
    fitted = refitted(MODEL, history(truth, noise=0.1, outliers=12))
    assert fitted.scales.prefill_shared == pytest.approx(3.0, rel=0.1)
    assert fitted.scales.decode_shared == pytest.approx(1.7, rel=0.1)
    assert fitted.scales.prefill(False) == fitted.scales.prefill_shared  # what was not observed follows


def test_a_few_steps_change_nothing() -> None:
    assert refitted(MODEL, history(MODEL)[:3]) == MODEL


def test_steps_of_mixed_batches_tell_of_neither_phase_alone() -> None:
    mixed = [replace(step, mode=Mode.MIXED, duration_s=9.0) for step in history(MODEL)]
    assert refitted(MODEL, mixed) == MODEL


def test_the_fit_is_bounded() -> None:
    absurd = [replace(s, duration_s=1e6) for s in history(MODEL)]
    fitted = refitted(MODEL, absurd).scales
    assert max(v for v in (fitted.prefill_shared, fitted.decode_shared) if v) <= BOUND


def test_faster_launches_are_learned_from_small_batches_and_the_work_from_large_ones() -> None:
    truth = replace(MODEL, launch_s=4e-3, scales=Scales(prefill_alone=1.5, launch=1.0))
    steps, at = [], 0.0
    for i in range(100):
        tokens = (32, 1024)[i % 2]
        took = truth.prefill_s(tokens, tokens)
        at += took
        steps.append(Step(Phase.PREFILL, at, took, 1, tokens, tokens, split(48)))
    fitted = refitted(MODEL, steps)
    assert fitted.prefill_s(32, 32) == pytest.approx(truth.prefill_s(32, 32), rel=0.05)
    assert fitted.prefill_s(1024, 1024) == pytest.approx(truth.prefill_s(1024, 1024), rel=0.05)


def test_a_device_that_sees_only_small_batches_is_learned_from_them() -> None:
    steps = [Step(Phase.PREFILL, i * 0.2, 0.118, 1, 64, 64, split(48)) for i in range(1, 50)]
    assert refitted(MODEL, steps).prefill_s(64, 64) == pytest.approx(0.118)


def test_company_is_seen_where_the_phases_overlap() -> None:
    def step(phase: Phase, start: float, end: float) -> Step:
        return Step(phase, end, end - start, 1, 1, 1, split(48))

    steps = [
        step(Phase.DECODE, 0.0, 1.0),
        step(Phase.DECODE, 1.0, 2.0),
        step(Phase.PREFILL, 1.2, 2.5),
        step(Phase.DECODE, 2.4, 3.4),
    ]
    assert {(s.end_s, company) for s, company in with_company(steps)} == {
        (1.0, False),
        (2.0, True),
        (2.5, True),
        (3.4, False),
    }


def test_a_refit_takes_under_two_milliseconds() -> None:
    steps = history(MODEL)

    def once() -> float:
        start = time.thread_time()
        refitted(MODEL, steps)
        return time.thread_time() - start

    assert min(once() for _ in range(20)) < 0.002
