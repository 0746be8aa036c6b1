"""The latency model's fit to what a server observes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from semipd.core.latency import LatencyModel, Scales
from semipd.core.partition import FULL, Mode, Phase
from semipd.core.sms import split
from semipd.core.snapshot import Step
from semipd.policies.toolkit.fitting import FIT, Fit, StepWindow, expected_s, refitted
from semipd.profiles.latency import shipped_model

MODEL = shipped_model()


def history(truth: LatencyModel, seconds: float = 2.0, noise: float = 0.0, outliers: int = 0) -> list[Step]:
    """Prefill batches one after another beside decode steps, under `truth`."""
    draw = random.Random(1)
    shares = split(48, 132)
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


def test_phases_that_meet_as_turns_begin_say_nothing_of_a_split() -> None:
    met = [replace(step, mode=Mode.TURNS, shares=FULL) for step in history(MODEL)]
    assert refitted(MODEL, met) == MODEL


def test_the_fit_is_bounded() -> None:
    absurd = [replace(s, duration_s=1e6) for s in history(MODEL)]
    fitted = refitted(MODEL, absurd).scales
    assert max(v for v in (fitted.prefill_shared, fitted.decode_shared) if v) <= FIT.bound


def test_faster_launches_are_learned_from_small_batches_and_the_work_from_large_ones() -> None:
    truth = replace(MODEL, launch_s=4e-3, scales=Scales(prefill_alone=1.5, launch=1.0))
    steps, at = [], 0.0
    for i in range(100):
        tokens = (32, 1024)[i % 2]
        took = truth.prefill_s(tokens, tokens)
        at += took
        steps.append(Step(Phase.PREFILL, at, took, 1, tokens, tokens, split(48, 132)))
    fitted = refitted(MODEL, steps)
    assert fitted.prefill_s(32, 32) == pytest.approx(truth.prefill_s(32, 32), rel=0.05)
    assert fitted.prefill_s(1024, 1024) == pytest.approx(truth.prefill_s(1024, 1024), rel=0.05)


def test_passes_that_are_launched_kernel_by_kernel_tell_nothing() -> None:
    """They take their launches' time, which is neither that of a captured launch nor of the work."""
    steps = [Step(Phase.PREFILL, i * 0.2, 5 * MODEL.eager_s, 1, 64, 4000, FULL) for i in range(1, 50)]
    assert refitted(MODEL, steps) == MODEL


def test_a_device_that_sees_only_small_batches_is_learned_from_them() -> None:
    steps = [Step(Phase.PREFILL, i * 0.2, 0.118, 1, 64, 64, split(48, 132)) for i in range(1, 50)]
    assert refitted(MODEL, steps).prefill_s(64, 64) == pytest.approx(0.118)


def step(phase: Phase, start: float, end: float) -> Step:
    return Step(phase, end, end - start, 1, 1, 1, split(48, 132))


def contended(window: StepWindow) -> dict[float, bool]:
    """Returns whether each step was contended, by the step's end."""
    return {each.step.end_s: each.contended for each in window.observed}


def test_contention_is_seen_where_the_phases_overlap() -> None:
    window = StepWindow()
    window.see(
        [
            step(Phase.DECODE, 0.0, 1.0),
            step(Phase.DECODE, 1.0, 2.0),
            step(Phase.PREFILL, 1.2, 2.5),
            step(Phase.DECODE, 2.4, 3.4),
        ]
    )
    assert contended(window) == {1.0: False, 2.0: True, 2.5: True, 3.4: False}


def test_contention_that_ends_later_or_is_no_longer_in_the_window_counts() -> None:
    window = StepWindow()
    steps = [step(Phase.PREFILL, 0.0, 0.9), step(Phase.DECODE, 0.0, 1.0), step(Phase.DECODE, 1.0, 2.0)]
    window.see(steps)
    assert contended(window) == {0.9: True, 1.0: True, 2.0: False}
    steps = [*steps[1:], step(Phase.PREFILL, 1.1, 2.1)]
    window.see(steps)
    assert contended(window) == {1.0: True, 2.0: True, 2.1: True}


def test_other_steps_than_before_are_a_new_window() -> None:
    window = StepWindow()
    for at in (5.0, 3.0):
        window.see([step(Phase.PREFILL, at, at + 1.0), step(Phase.DECODE, at + 0.9, at + 1.9)])
        assert contended(window) == {at + 1.0: False, at + 1.9: False}
    window.see([])
    assert contended(window) == {}


def test_fitting_step_by_step_comes_to_the_same_as_fitting_all_at_once() -> None:
    truth = replace(MODEL, scales=Scales(prefill_shared=3.0, decode_shared=1.7))
    steps = history(truth, noise=0.1, outliers=12)
    fit = Fit(MODEL)
    for count in range(1, len(steps) + 1):
        fit.see(steps[:count])
    at_once = refitted(MODEL, steps).scales
    assert fit.model.scales.prefill_shared == at_once.prefill_shared
    assert fit.model.scales.decode_shared == at_once.decode_shared
