"""The latency model against what one H200 measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from semipd.policies.toolkit.latency import LatencyModel, Scales

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


def test_passes_of_one_prompt_take_what_any_batch_takes() -> None:
    for scales in (Scales(), Scales(prefill_alone=0.8, launch=0.5)):
        model = replace(MODEL, scales=scales)
        for computed in (0, 1000, 7000):
            passes_s = model.passes_s(computed)
            for tokens in (1, 100, 512, 4096):
                assert passes_s(tokens) == pytest.approx(model.prefill_s(tokens, computed + tokens))
