"""A run: a trace at a rate against a target, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from semipd.bench.arrivals import TraceArrival, arrivals
from semipd.bench.errors import InputError, RunFailed
from semipd.bench.load.drive import DriveResult, Progress, drive, look
from semipd.bench.provenance import provenance
from semipd.bench.scoring.records import Outcome
from semipd.bench.scoring.report import RunReport
from semipd.bench.scoring.score import distribution, score
from semipd.bench.scoring.target_info import TargetInfo
from semipd.bench.scoring.validity import problems
from semipd.bench.settings import RunSettings
from semipd.bench.traces import check_sendable, load_trace, scaled


async def run(settings: RunSettings, progress: Callable[[Progress], None] | None = None) -> RunReport:
    """Raises InputError, Unreachable, or RunFailed where not one request was done; see errors.

    A run whose client fell behind gives a report that says so (`problems`).
    """
    trace = load_trace(settings.trace)
    check_sendable(trace)
    if not settings.scale > 0:
        raise InputError(f"the scale must be above 0, not {settings.scale}")
    if settings.scale != 1.0:
        trace = scaled(trace, settings.scale)
    due = arrivals(trace, settings.rate, settings.duration_s, settings.seed)
    target = await look(settings)
    check_context(due, target)
    driven = await drive(settings, target, due, progress)
    return report(settings, driven)


def check_context(due: Sequence[TraceArrival], target: TargetInfo) -> None:
    """Raises InputError where the model's context is too short for a request."""
    if target.max_context is None:
        return
    longest = max(due, key=lambda a: a.entry.prompt_len + a.entry.output_len).entry
    if longest.prompt_len + longest.output_len > target.max_context:
        raise InputError(
            f"the trace has a request of {longest.prompt_len} + {longest.output_len} tokens, and the context of "
            f"{target.model} ends at {target.max_context}; shorten all of them with --scale"
        )


def report(settings: RunSettings, driven: DriveResult) -> RunReport:
    """Scores what was driven. Raises RunFailed where not one request was done."""
    scored = score(driven.records, settings.duration_s)
    if not any(r.outcome is Outcome.DONE for r in driven.records):
        reasons = "; ".join(f"{count} x {reason}" for reason, count in list(scored.reasons.items())[:3])
        raise RunFailed(f"{settings.target}: not one of {scored.sent} requests was done: {reasons}")
    lateness = distribution(r.sent_s - r.scheduled_s for r in driven.records)
    assert lateness is not None
    return RunReport(
        settings=settings,
        target=driven.target,
        provenance=provenance(),
        problems=problems(driven.records, lateness, driven.clients),
        score=scored,
        lateness_s=lateness,
        clients=driven.clients,
        timeline=driven.timeline,
        records=driven.records,
    )
