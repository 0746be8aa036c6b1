"""A trace at a few given rates: how many requests are inside their tight SLO at each.

A search by many whole runs is `semipd bench goodput`; here the rates are given, with one seed, since time on the
machine is short. The goodput is then the highest of them at which at least 90 % of the requests were inside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from figures.bench import Bench
from figures.section_results import Page
from semipd.bench.drawing.pictures import draw_runs
from semipd.bench.runs.run import run
from semipd.bench.scoring.records import Outcome, RequestRecord
from semipd.bench.scoring.report import RunReport
from semipd.bench.scoring.timeline import LoadSample
from semipd.bench.settings import RunSettings

TARGET = 0.9
HOPELESS = 0.6
"""Below this attainment higher rates are not tried."""
DRAIN_S = 40.0


def goodput(trace: str, rates: Sequence[float], seconds: float) -> Callable[[Bench, Page], None]:
    def measure(bench: Bench, page: Page) -> None:
        served, _ = bench.server(trace)
        wanted = bench.wanted(trace)
        reports: list[RunReport] = []
        page.result |= {
            "server_options": wanted.server,
            "policy": {"name": wanted.policy, **wanted.policy_options},
            "goodput": None,
            "runs": [],
        }
        for rate in sorted(rates):
            settings = RunSettings(
                *(served.target, trace, rate, seconds),
                seed=bench.seed,
                clients=bench.clients,
                scale=bench.scale.traces,
                drain_s=DRAIN_S,
            )
            report = asyncio.run(run(settings))
            reports.append(report)
            page.result["runs"].append(summary(report))
            passed = [r.settings.rate for r in reports if r.valid and r.score.attainment >= TARGET]
            if passed:
                page.result["goodput"] = page.figures[f"goodput_{trace}"] = max(passed)
            page.save()
            print(f"    {said(report)}", flush=True)
            if report.score.attainment < HOPELESS:
                break
        draw_runs(page.picture(), [(wanted.policy, report) for report in reports])

    return measure


def summary(report: RunReport) -> dict[str, Any]:
    """Everything of a run but its requests."""
    half = [r for r in report.records if r.scheduled_s >= report.settings.duration_s / 2]
    return {
        "rate": report.settings.rate,
        "seconds": report.settings.duration_s,
        "seed": report.settings.seed,
        "valid": report.valid,
        "problems": report.problems,
        "score": report.score,
        "attainment_of_second_half": sum(r.met() for r in half) / len(half) if half else None,
        "misses": misses(report.records),
        "lateness_s": report.lateness_s,
        "load_processes": [
            {"busy": client.busy, "requests": client.requests, "loop_lag_s": client.loop_lag_s}
            for client in report.clients
        ],
        "server": report.target.server,
        "timeline": columns(report.timeline),
    }


def misses(records: Sequence[RequestRecord]) -> dict[str, int]:
    found = {"ttft": 0, "tpot": 0, "both": 0, "refused": 0, "failed": 0}
    for record in records:
        if record.met():
            continue
        if record.outcome is not Outcome.DONE:
            found[record.outcome.value] += 1
            continue
        late = record.ttft_s is None or record.ttft_s > record.ttft_slo_s
        slow = record.tpot_s is not None and record.tpot_s > record.tpot_slo_s
        found["both" if late and slow else "ttft" if late else "tpot"] += 1
    return found


def columns(timeline: Sequence[LoadSample]) -> dict[str, list[float]]:
    names = ("at_s", "waiting", "prefilling", "decoding", "used_pages", "prefill_share", "decode_share")
    return {name: [round(getattr(sample, name), 2) for sample in timeline] for name in names}


def said(report: RunReport) -> str:
    score, missed = report.score, misses(report.records)
    ttft, tpot = score.ttft_s, score.tpot_s
    assert ttft is not None
    slow = "" if tpot is None else f", TPOT p50 {1e3 * tpot.p50:.1f} p90 {1e3 * tpot.p90:.1f} ms"
    return (
        f"{report.settings.trace} at {report.settings.rate:g}/s: {score.attainment:.1%} of {score.sent} inside; "
        f"TTFT p50 {1e3 * ttft.p50:.0f} p90 {1e3 * ttft.p90:.0f} ms{slow}; misses: "
        + (", ".join(f"{name} {count}" for name, count in missed.items() if count) or "none")
        + ("" if report.valid else f"; INVALID: {'; '.join(report.problems)}")
    )
