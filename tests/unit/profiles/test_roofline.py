"""Tests the latency model from a device's own data against what was measured on one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from unit.profiles.test_find import H200, LLAMA

from semipd.core.latency import LatencyModel
from semipd.memory.nvml import Gpu
from semipd.profiles.hardware import ASSUMED_SMS, hardware_of_cpu, hardware_of_gpu
from semipd.profiles.profile import SHIPPED, DecodePoint, DecodeTable, PrefillTable, load_profile
from semipd.profiles.roofline import roofline

SHIP = load_profile(SHIPPED)
TABLES: tuple[DecodeTable | PrefillTable, ...] = (*SHIP.decode, *SHIP.prefill)
CPUINFO = (
    "processor\t: 0\ncpu MHz\t\t: 2400.0\nflags\t\t: fpu sse2 avx2 avx512f\n\nprocessor\t: 1\ncpu MHz\t\t: 1200.0\n"
)


def model() -> LatencyModel:
    return roofline(H200, LLAMA, 2)


def test_alone_it_is_within_a_third_of_what_an_h200_was_measured_to_do() -> None:
    for table in TABLES:
        if table.other_sms:
            continue
        share = 100 * table.sms / SHIP.gpu.sms
        for p in table.points:
            if isinstance(p, DecodePoint):
                computed = model().decode_s(p.rows, p.rows * p.context, share=share)
            else:
                computed = model().prefill_s(p.tokens, p.start + p.tokens, share=share)
            assert 1000 * computed == pytest.approx(p.ms, rel=0.33), (table.sms, p)
    for q in SHIP.mixed:
        assert 1000 * model().mixed_s(q.tokens, q.start, q.rows, q.rows * q.context) == pytest.approx(q.ms, rel=0.33)


def test_the_other_phase_costs_each_something_and_decode_most_where_nothing_is_divided() -> None:
    assert model().prefill_s(2048, 2048, share=50, other=50) > model().prefill_s(2048, 2048, share=50)
    assert model().decode_s(64, 65536, share=50, other=50) > model().decode_s(64, 65536, share=50)
    assert model().decode_s(64, 65536, share=100, other=100) > model().decode_s(64, 65536, share=50, other=50)


def test_half_the_rates_take_twice_as_long() -> None:
    half = roofline(replace(H200, flops=H200.flops / 2, bytes_per_s=H200.bytes_per_s / 2), LLAMA, 2)
    assert half.token_s == pytest.approx(2 * model().token_s)
    assert half.kv_s == pytest.approx(2 * model().kv_s)


def test_a_gpu_is_what_its_driver_says_and_what_that_leaves_out_is_assumed() -> None:
    known = Gpu("A card", 24 << 30, (8, 9), "", 128 * 58, 2.0e9, 300e9)
    assert known.sms == 58
    told = hardware_of_gpu(known, "bfloat16")
    assert (told.sms, told.sms_known, told.bytes_per_s) == (58, True, 300e9)
    assert told.flops == 58 * 1024 * 2.0e9
    assert hardware_of_gpu(known, "float32").flops == 58 * 256 * 2.0e9
    silent = hardware_of_gpu(Gpu("A card", 24 << 30, (8, 9)), "bfloat16")
    assert (silent.sms, silent.sms_known) == (ASSUMED_SMS, False)
    assert silent.flops > 0
    assert silent.bytes_per_s > 0


def test_a_cpu_is_its_cores_clock_and_vectors(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(CPUINFO)
    assert hardware_of_cpu(4, info).flops == 4 * 2.4e9 * 64
    info.write_text(CPUINFO.replace("avx512f", ""))
    assert hardware_of_cpu(4, info).flops == 4 * 2.4e9 * 32
    assert hardware_of_cpu(4, tmp_path / "nothing").flops > 0
    assert not hardware_of_cpu(4, info).on_gpu
