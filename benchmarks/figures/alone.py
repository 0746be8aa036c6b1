"""One request at a time, through gRPC: TTFT and TPOT."""

from __future__ import annotations

import asyncio

from figures.bench import Bench
from figures.load import lost, said_of, settings_for
from figures.section_results import Page, spread
from semipd.bench.arrivals import TraceArrival
from semipd.bench.errors import RunFailed
from semipd.bench.load.drive import drive, look
from semipd.bench.scoring.records import Outcome
from semipd.bench.traces import with_slo

LEFT_OUT = 2
"""Requests at the start that do not count."""


def alone(bench: Bench, page: Page) -> None:
    scale = bench.scale
    served, _ = bench.server("alone")
    entry = with_slo(scale.alone_prompt, scale.alone_output)
    chain = [TraceArrival(i, 0.0, entry) for i in range(scale.alone_requests + LEFT_OUT)]
    settings = settings_for(served.target, 60.0, 1)

    async def drive_it() -> None:
        driven = await drive(settings, await look(settings), (), None, [chain])
        done = [r for r in driven.records if r.outcome is Outcome.DONE][LEFT_OUT:]
        ttft = spread(r.ttft_s for r in done if r.ttft_s is not None)
        tpot = spread(r.tpot_s for r in done if r.tpot_s is not None)
        if ttft is None or tpot is None:
            raise RunFailed(f"nothing was answered: {lost(driven.records)[:3]}")
        page.result |= {
            "prompt_tokens": scale.alone_prompt,
            "output_tokens": scale.alone_output,
            "requests": len(done),
            "ttft_s": ttft,
            "tpot_s": tpot,
            "gap_s": spread(gap for r in done for gap in r.gaps_s),
            "ttft_each_s": [r.ttft_s for r in done],
            "load": said_of(driven),
        }
        page.figures |= {"alone_ttft_ms": 1e3 * ttft["p50"], "alone_tpot_ms": 1e3 * tpot["p50"]}

    asyncio.run(drive_it())
