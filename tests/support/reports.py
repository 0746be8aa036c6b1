"""Reports of benchmark runs that nobody made, for tests of what is done with reports."""

from __future__ import annotations

from dataclasses import replace

from semipd.bench.scoring.records import Outcome, RequestRecord
from semipd.bench.scoring.report import RunReport
from semipd.bench.scoring.score import distribution, score
from semipd.bench.scoring.target_info import TargetInfo
from semipd.bench.scoring.timeline import LoadSample
from semipd.bench.scoring.validity import ClientUse
from semipd.bench.settings import RunSettings
from semipd.core.provenance import Provenance

SETTINGS = RunSettings(target="grpc://127.0.0.1:50051", trace="chat", rate=4.0, duration_s=10.0)
PROVENANCE = Provenance("semipd bench run", "abc", False, "2026-01-01T00:00:00", "3.12", "Linux", "cpu", 2, (), {})
TIMELINE = (LoadSample(0.0, 3, 1, 5, 40, 100, 60, 40, 80.0, "static"),)


def record(index: int, ttft_s: float, tpot_s: float = 0.02, tokens: int = 5) -> RequestRecord:
    """A request that was done, sent at `index` x 0.1 s, held to 0.1 s and 0.05 s."""
    sent = index * 0.1
    last = sent + ttft_s + (tokens - 1) * tpot_s
    return RequestRecord(
        index=index,
        prompt_len=10,
        output_len=tokens,
        ttft_slo_s=0.1,
        tpot_slo_s=0.05,
        scheduled_s=sent,
        sent_s=sent,
        outcome=Outcome.DONE,
        reason="",
        tokens=tokens,
        first_s=sent + ttft_s,
        last_s=last,
        done_s=last,
        queue_s=None,
        largest_gap_s=tpot_s,
        gaps_s=(tpot_s,) * (tokens - 1),
        counts=(),
    )


def report(
    settings: RunSettings = SETTINGS,
    *,
    met: int = 90,
    loose: int = 0,
    total: int = 100,
    slower: float = 1.0,
    problems: tuple[str, ...] = (),
    timeline: tuple[LoadSample, ...] = TIMELINE,
) -> RunReport:
    """`met` of `total` requests are inside the tight SLO, `loose` more inside the loose one. Every latency of those
    that met it is 0.05 s (TTFT) and 0.02 s (TPOT), times `slower`."""
    ttfts = [0.05 * slower] * met + [0.12] * loose + [0.5] * (total - met - loose)
    records = tuple(record(i, ttft, 0.02 * slower) for i, ttft in enumerate(ttfts))
    lateness = distribution([0.001])
    assert lateness is not None
    return RunReport(
        settings=settings,
        target=TargetInfo("grpc", "tiny", 100, 4096, "token ids", {"version": "0.1.0"}),
        provenance=PROVENANCE,
        problems=problems,
        score=score(records, settings.duration_s),
        lateness_s=lateness,
        clients=(ClientUse(total, total * 5, 10.0, 1.0, lateness, lateness),),
        timeline=timeline,
        records=records,
    )


def at_rate(rate: float, seed: int = 0) -> RunSettings:
    return replace(SETTINGS, rate=rate, seed=seed)
