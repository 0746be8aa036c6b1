"""Measures what long prompts do to readers."""

from __future__ import annotations

import asyncio

from figures.bench import Bench
from figures.section_results import Page, histogram
from semipd.bench.runs.interference import InterferenceSettings, gaps_within, windows
from semipd.bench.runs.interference_run import measure_interference


def interfere(bench: Bench, page: Page) -> None:
    scale = bench.scale
    served, _ = bench.server("interference")
    settings = InterferenceSettings(
        target=served.target,
        decoding=scale.batch,
        context=scale.batch_context,
        output_tokens=scale.batch_output,
        prompt_tokens=scale.long_prompt,
        prompt_rate=scale.long_prompts_rate,
        duration_s=scale.interference_s,
        settle_s=scale.settle_s,
        seed=bench.seed,
        clients=bench.clients,
    )
    report = asyncio.run(measure_interference(settings))
    result = report.result
    page.result |= {
        "settings": settings,
        "valid": report.valid,
        "problems": report.problems,
        "steady": result.steady,
        "alone": result.alone,
        "with_prompts": result.with_prompts,
        "prompts": result.prompts,
        "p99_ratio": result.p99_ratio,
        "server": report.target.server,
        "gaps_alone_ms": histogram(gaps_within(report.records, windows(settings)[0])),
        "gaps_with_prompts_ms": histogram(gaps_within(report.records, windows(settings)[1])),
    }
    page.figures["interference_p99_ms"] = 1e3 * result.with_prompts.gaps_s.p99
    page.save()
    report.draw(page.picture())
