"""The split changes many times a second under load: how soon steps follow it, and what a change costs them."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median, stdev
from typing import Any

from figures.bench import Bench
from figures.load import during, gaps_between, last_index, lost, places, said_of, settings_for
from figures.section_results import Page, spread
from figures.server_process import Admin
from semipd.bench.arrivals import TraceArrival
from semipd.bench.load.drive import DriveResult
from semipd.bench.scoring.records import RequestRecord
from semipd.bench.traces import with_slo

PROMPTS_AT_ONCE = 3
"""Prompts that are sent at once, so that the prefill worker always has one."""
METRIC = re.compile(r"^semipd[:_]split_delay_seconds_(?P<kind>bucket|sum|count)(?:\{(?P<labels>.*)\})?$")


@dataclass
class Told:
    """Times of time.monotonic()."""

    windows: list[tuple[str, float, float]] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    """The moments at which splits were granted."""
    granted: list[tuple[float, float]] = field(default_factory=list)
    ask_s: list[float] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)


def split(bench: Bench, page: Page) -> None:
    scale = bench.scale
    served, admin = bench.server("split")
    seconds = 2 * scale.settle_s + 3 * scale.window_s + 1.0
    batch = places(scale.batch, scale.batch_context, scale.batch_output, seconds)
    first_prompt = last_index(batch) + 1
    each = int(seconds / scale.shortest_prefill_s)
    prompts = [
        [TraceArrival(first_prompt + lane * each + i, 0.0, with_slo(scale.long_prompt // 2, 1)) for i in range(each)]
        for lane in range(PROMPTS_AT_ONCE)
    ]
    settings = settings_for(served.target, seconds, bench.clients)
    before = admin.load().partition
    try:
        driven, told = asyncio.run(
            during(settings, (), [*batch, *prompts], lambda: change(bench, admin, served.metrics))
        )
    finally:
        admin.set_partition(before.prefill, before.decode)
    batch_records = [r for r in driven.records if r.index < first_prompt]
    prompts_done = sum(r.index >= first_prompt for r in driven.records)
    page.result |= judged(driven, batch_records, told) | {
        "prompts_begun": prompts_done,
        "prompt_tokens": scale.long_prompt // 2,
        "switches_per_s_asked": scale.switches_per_s,
        "failed": lost(driven.records)[:5],
        "load": said_of(driven),
    }
    page.figures["split_added_us"] = page.result["added_us"]
    if "mean_s" in page.result["delay"]:
        # A decision falls anywhere into a step: half a step on average if the next launch follows it, 1.5 if only the
        # one after that. Percentiles would compare it with steps of their own length, which differ.
        page.figures["split_delay_steps"] = page.result["delay"]["mean_s"] / page.result["step_s"]


async def change(bench: Bench, admin: Admin, metrics: Any) -> Told:
    """A window in each of the two splits, then one in which they take turns."""
    scale, told = bench.scale, Told()
    one, other = scale.splits
    for name, shares in (("first", one), ("second", other)):
        told.granted.append(await asyncio.to_thread(admin.set_partition, *shares))
        await asyncio.sleep(scale.settle_s)
        begin = time.monotonic()
        await asyncio.sleep(scale.window_s)
        told.windows.append((name, begin, time.monotonic()))
    told.before = await asyncio.to_thread(metrics)
    begin = time.monotonic()
    number = 0
    while (now := time.monotonic()) < begin + scale.window_s:
        await asyncio.to_thread(admin.set_partition, *(one, other)[number % 2])
        told.changes.append(time.monotonic())
        told.ask_s.append(told.changes[-1] - now)
        number += 1
        await asyncio.sleep(max(0.0, begin + number / scale.switches_per_s - time.monotonic()))
    told.windows.append(("changing", begin, time.monotonic()))
    told.after = await asyncio.to_thread(metrics)
    return told


def judged(driven: DriveResult, batch: Sequence[RequestRecord], told: Told) -> dict[str, Any]:
    def window(name: str) -> tuple[float, float]:
        return next((a - driven.start_s, b - driven.start_s) for n, a, b in told.windows if n == name)

    gaps = {name: gaps_between(batch, *window(name)) for name, _, _ in told.windows}
    means = {name: fmean(values) if values else math.nan for name, values in gaps.items()}
    changes = [at - driven.start_s for at in told.changes]
    added = around(batch, changes, *window("changing"))
    return {
        "granted": told.granted,
        "gap_s": {name: spread(values) for name, values in gaps.items()},
        "step_s": median(gaps["changing"]) if gaps["changing"] else math.nan,
        "changes": len(changes),
        "changes_per_s": len(changes) / (window("changing")[1] - window("changing")[0]),
        "ask_s": spread(told.ask_s),
        **added,
        "mean_gap_over_mean_of_both_splits_us": 1e6 * (means["changing"] - (means["first"] + means["second"]) / 2),
        "delay": delays(told.before, told.after),
    }


def around(batch: Sequence[RequestRecord], changes: Sequence[float], begin_s: float, end_s: float) -> dict[str, Any]:
    """Measures what a change costs: the gap in which it fell and the next one, against the other gaps of the same
    window. Both splits are equally frequent on both sides, so the difference is the change's own."""
    at: list[float] = []
    after: list[float] = []
    others: list[float] = []
    for record in batch:
        times = [t for t, _ in record.token_times()]
        place, fresh = 0, False
        for before, now in pairwise(times):
            while place < len(changes) and changes[place] <= before:
                place += 1
            hit = place < len(changes) and changes[place] <= now
            if begin_s <= before and now < end_s:
                (at if hit else after if fresh else others).append(now - before)
            fresh = hit
    if not at or not after or not others:
        return {"added_us": math.nan, "added_is_of": "no steps with and without a change"}
    rest = fmean(others)
    noise = math.sqrt(sum(stdev(g) ** 2 / len(g) for g in (at, after, others) if len(g) > 1))
    return {
        "added_us": 1e6 * (fmean(at) + fmean(after) - 2 * rest),
        "added_standard_error_us": 1e6 * noise,
        "gap_with_change_s": spread(at),
        "gap_after_change_s": spread(after),
        "gap_otherwise_s": spread(others),
    }


def delays(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    """Reads the delays from decision to first step off the server's histogram. Percentiles are upper ends of
    buckets."""
    buckets: dict[float, float] = {}
    total = count = 0.0
    for name, value in after.items():
        match = METRIC.match(name)
        if match is None:
            continue
        grown = value - before.get(name, 0.0)
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match["labels"] or ""))
        if labels.get("role", labels.get("phase", "decode")) != "decode":
            continue
        if match["kind"] == "bucket":
            end = float(labels["le"])
            buckets[end] = buckets.get(end, 0.0) + grown
        elif match["kind"] == "sum":
            total += grown
        else:
            count += grown
    if not count:
        return {"count": 0, "why": "the server told of no change (semipd:split_delay_seconds)"}
    ends = sorted(buckets)
    upper = {f"p{q}_at_most_s": next(e for e in ends if buckets[e] >= q / 100 * count) for q in (50, 90, 99)}
    return {"count": int(count), "mean_s": total / count, **upper}
