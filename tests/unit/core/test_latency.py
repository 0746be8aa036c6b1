"""The latency model's own rules, whatever constants it has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from semipd.core.latency import NOMINAL, LatencyModel, Scales, Slowdown
from semipd.profiles.latency import shipped_model

MODEL = shipped_model()


@pytest.mark.parametrize("model", [MODEL, NOMINAL])
def test_more_work_or_less_device_never_takes_less(model: LatencyModel) -> None:
    for other in (0.0, 40.0):
        decode = [model.decode_s(32, 32768, share=s, other=other) for s in range(10, 61, 10)]
        assert decode == sorted(decode, reverse=True)
        prefill = [model.prefill_s(2048, 2048, share=s, other=other) for s in range(10, 61, 10)]
        assert prefill == sorted(prefill, reverse=True)
    assert model.prefill_s(512, 4096) > model.prefill_s(512, 512)


def test_undivided_decode_is_slower_beside_prefill_than_with_half_of_the_device_to_itself() -> None:
    undivided = MODEL.decode_s(64, 65536, share=100, other=100)
    assert undivided > 2 * MODEL.decode_s(64, 65536)
    assert undivided > MODEL.decode_s(64, 65536, share=50, other=50)


def test_nothing_takes_no_time() -> None:
    assert MODEL.prefill_s(0, 0) == MODEL.decode_s(0, 0) == 0.0


def test_passes_of_one_prompt_take_what_any_batch_takes() -> None:
    for scales in (Scales(), Scales(prefill_alone=0.8, launch=0.5)):
        model = replace(MODEL, scales=scales)
        for computed in (0, 700, 1000, 7000):
            passes_s = model.passes_s(computed)
            for tokens in (1, 100, 256, 300, 512, 4096):
                assert passes_s(tokens) == pytest.approx(model.prefill_s(tokens, computed + tokens))


def test_few_tokens_after_a_long_context_wait_for_their_launches() -> None:
    assert MODEL.prefill_s(128, 128) < MODEL.prefill_s(128, 1000) < MODEL.eager_s
    assert MODEL.prefill_s(128, 1100) == MODEL.eager_s
    slower = replace(MODEL, scales=Scales(launch=2.0))
    assert slower.prefill_s(128, 1100) == 2 * MODEL.eager_s


def test_a_mixed_batch_costs_its_rows_as_tokens_and_never_less_than_the_weights() -> None:
    assert MODEL.mixed_s(512, 0, 64, 0) == pytest.approx(MODEL.mixed_s(512, 0, 0, 0) + 64 * MODEL.token_s)
    assert MODEL.mixed_s(0, 0, 1, 0) == MODEL.weights_s
    assert MODEL.mixed_s(512, 3000, 64, 0) > MODEL.mixed_s(512, 0, 64, 0)


class TestSlowdown:
    RULE = Slowdown(alone=((0.25, (3.0,)), (1.0, (1.0,))), contended=((0.25, (1.1,)), (0.75, (1.3,))), overlap=0.5)

    def at(self, share: float, other: float) -> float:
        return self.RULE.factors(share, other)[0]

    def test_a_knot_is_met_and_between_two_the_factor_is_between(self) -> None:
        assert self.at(100, 0) == 1.0
        assert self.at(25, 0) == 3.0
        assert self.at(50, 0) == pytest.approx(3**0.5)  # halfway on logarithmic scales

    def test_below_the_first_knot_time_grows_as_the_share_shrinks(self) -> None:
        assert self.at(12.5, 0) == 6.0

    def test_contention_comes_on_top_and_is_constant_beyond_what_was_measured(self) -> None:
        assert self.at(25, 75) == pytest.approx(3.0 * 1.3)
        assert self.at(25, 10) == pytest.approx(3.0 * 1.1)

    def test_of_what_both_may_use_a_phase_feels_its_part(self) -> None:
        assert self.at(50, 100) == pytest.approx(3.0 * 1.3)  # half of 50, all of it shared
        assert self.at(75, 50) == pytest.approx(self.at(62.5, 0) * self.at(25, 50) / 3.0)
