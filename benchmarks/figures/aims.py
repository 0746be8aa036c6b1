"""The figures that are asked for, and what a measured one is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

SHOWN = 60
"""Characters of an error; its section's file has all of it."""


@dataclass(frozen=True, slots=True)
class Aim:
    name: str
    section: str
    unit: str
    least: float
    aim: float
    higher_is_better: bool = False
    note: str = ""

    def verdict(self, measured: float | None) -> str:
        if measured is None:
            return "not measured"
        sign = -1 if self.higher_is_better else 1
        if sign * measured <= sign * self.aim:
            return "aim met"
        return "enough" if sign * measured <= sign * self.least else "SHORT"


AIMS: Mapping[str, Aim] = {
    "decode_64x1024_ms": Aim("decode step, 64 requests at 1024 tokens, all SMs", "engine", "ms", 7.4, 6.3),
    "prefill_2048_tok_s": Aim("prefill of 2048 tokens alone", "engine", "tok/s", 39_000, 42_000, True),
    "alone_ttft_ms": Aim("one request alone: TTFT of 251 tokens (p50)", "alone", "ms", 15, 12),
    "alone_tpot_ms": Aim("one request alone: TPOT (p50)", "alone", "ms", 4.9, 4.4),
    "split_delay_steps": Aim("change of the split: mean from decision to first step under it", "split", "steps", 1, 1),
    "split_added_us": Aim("change of the split: added to the steps around it", "split", "µs", 100, 100),
    "mps_stalled": Aim("mps: requests stalled by a change", "mps", "", 0, 0),
    "mps_p99_ratio": Aim("mps: p99 token gap during a change / before", "mps", "x", 2, 2),
    "interference_p99_ms": Aim("interference: p99 token gap of the batch", "interference", "ms", 25, 15),
    "goodput_chat": Aim("goodput, tight SLO: chat", "chat", "req/s", 56, 73, True),
    "goodput_mixed": Aim("goodput, tight SLO: mixed", "mixed", "req/s", 25, 42, True),
    "goodput_long": Aim("goodput, tight SLO: long", "long", "req/s", 6.8, 9.5, True),
    "fault_lost": Aim("illegal address under load: requests lost", "fault", "", 0, 0),
    "fault_reloads": Aim("illegal address under load: times that weights were loaded again", "fault", "", 0, 0),
    "fault_pause_p99_s": Aim("illegal address under load: p99 pause of a running stream", "fault", "s", 10, 3),
    "memory_workers_gb": Aim("device memory of both workers together", "memory", "GB", 4, 4),
}


def table(measured: Mapping[str, float], errors: Mapping[str, str]) -> Table:
    """`measured` by the keys of AIMS; `errors` by section."""
    shown = Table("figure", "at least", "aim", "measured", "verdict", title="figures")
    for key, aim in AIMS.items():
        value = measured.get(key)
        verdict = aim.verdict(value)
        if value is None and aim.section in errors:
            verdict = f"not measured: {errors[aim.section][:SHOWN]}"
        shown.add_row(aim.name, *(number(v, aim.unit) for v in (aim.least, aim.aim, value)), verdict)
    return shown


def better(key: str, one: float, other: float) -> float:
    return max(one, other) if AIMS[key].higher_is_better else min(one, other)


def number(value: Any, unit: str) -> str:
    if value is None:
        return ""
    shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{shown} {unit}".strip()
