"""The back end `mps`: a change starts new workers beside the old ones. Does anybody notice?"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from figures.bench import Bench, NeedsGpu
from figures.load import (
    during,
    gaps,
    gaps_between,
    last_index,
    lost,
    pause,
    places,
    running_at,
    said_of,
    settings_for,
)
from figures.section_results import Page, spread
from figures.server_process import Admin
from semipd.bench.arrivals import TraceArrival
from semipd.bench.drawing.plots import draw_gaps_over_time
from semipd.bench.scoring.records import UNFINISHED, Outcome
from semipd.bench.traces import with_slo

STALL = 2.0
"""Times the longest gap of the quiet window, without a token. Beside long prompts gaps of many medians are everyday."""
CHANGE_S = 18.0
"""Seconds in which both workers are replaced."""
AFTER_S = 1.0
"""Seconds after the last replacement that still count as part of the change."""


@dataclass(frozen=True)
class Change:
    """Times of time.monotonic()."""

    asked: tuple[float, float]
    granted: tuple[float, float]
    begin: float
    end: float | None
    """The moment at which both workers had been replaced; None: not in time."""


def mps(bench: Bench, page: Page) -> None:
    if not bench.gpu:
        raise NeedsGpu("needs a GPU")
    scale = bench.scale
    served, admin = bench.server("mps", partition="mps")
    seconds = 2 * scale.settle_s + scale.window_s + 2 * (CHANGE_S + scale.settle_s)
    batch = places(scale.batch, scale.batch_context, scale.batch_output, seconds)
    first = last_index(batch) + 1
    prompts = [
        TraceArrival(first + i, i / scale.long_prompts_rate, with_slo(scale.long_prompt // 2, 16))
        for i in range(int(seconds * scale.long_prompts_rate))
    ]
    settings = settings_for(served.target, seconds, bench.clients)
    driven, (before, changes) = asyncio.run(during(settings, prompts, batch, lambda: change(bench, admin)))
    streams = [r for r in driven.records if r.index < first]
    begin, end = (at - driven.start_s for at in before)
    normal = spread(gaps_between(streams, begin, end))
    assert normal is not None
    longest = STALL * max(gaps_between(streams, begin, end))
    page.result |= {
        "gap_before_s": normal,
        "changes": [],
        "failed": lost(driven.records)[:5],
        "load": said_of(driven),
    }
    stalled, p99 = 0, 0.0
    for made in changes:
        start = made.begin - driven.start_s
        stop = seconds if made.end is None else made.end - driven.start_s + AFTER_S
        seen = spread(gaps_between(streams, start, stop))
        there = [r for r in driven.records if r.sent_s < stop and r.done_s > start]
        halted = sum(pause(r, start, stop) > longest for r in streams if r.sent_s < stop and r.done_s > start)
        halted += sum(r.outcome is not Outcome.DONE and (r.index >= first or r.reason != UNFINISHED) for r in there)
        stalled += halted
        p99 = max(p99, seen["p99"] if seen else 0.0)
        page.result["changes"].append(
            {
                "asked": made.asked,
                "granted": made.granted,
                "took_s": None if made.end is None else made.end - made.begin,
                "gap_s": seen,
                "streams_running": len(running_at(streams, start)),
                "stalled": halted,
            }
        )
    if changes and all(made.end is not None for made in changes):
        page.figures |= {"mps_stalled": stalled, "mps_p99_ratio": p99 / normal["p99"]}
    else:
        page.error = "a change did not replace both workers in time"
    page.save()
    events = [(m.begin - driven.start_s, "change asked for") for m in changes]
    events += [(m.end - driven.start_s, "both workers new") for m in changes if m.end is not None]
    draw_gaps_over_time(page.picture(), gaps(streams), sorted(events), f"mps: {scale.batch} streams, split changed")


async def change(bench: Bench, admin: Admin) -> tuple[tuple[float, float], list[Change]]:
    """The quiet window, and two changes: there and back."""
    scale, made = bench.scale, []
    await asyncio.sleep(scale.settle_s)
    begin = time.monotonic()
    await asyncio.sleep(scale.window_s)
    quiet = (begin, time.monotonic())
    for asked in scale.splits:
        old = await asyncio.to_thread(admin.workers)
        begin = time.monotonic()
        granted = await asyncio.to_thread(admin.set_partition, *asked)
        made.append(Change(asked, granted, begin, await replaced(admin, old, begin + CHANGE_S)))
        if made[-1].end is None:
            break
        await asyncio.sleep(scale.settle_s)
    return quiet, made


async def replaced(admin: Admin, old: dict[str, Any], until: float) -> float | None:
    while time.monotonic() < until:
        now = await asyncio.to_thread(admin.workers)
        if all(role in now and now[role] != old.get(role) for role in ("prefill", "decode")):
            return time.monotonic()
        await asyncio.sleep(0.05)
    return None
