"""Load on a server while something else happens to it, and what its streams saw in a window of time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from figures.sizes import Scale
from semipd.bench.arrivals import TraceArrival, arrivals
from semipd.bench.load.drive import DriveResult, Progress, drive, look
from semipd.bench.scoring.records import UNFINISHED, Outcome, RequestRecord
from semipd.bench.scoring.score import distribution
from semipd.bench.scoring.validity import problems
from semipd.bench.settings import RunSettings
from semipd.bench.traces import load_trace, scaled, with_slo

T = TypeVar("T")

TURN_S = 0.0015
"""Least seconds between two tokens of a stream. It bounds the sequences that are written down for a place."""
WARM_UP_S = 4.0
GIVE_UP_S = 30.0
"""Seconds that requests have after the last arrival."""


async def during(
    settings: RunSettings,
    due: Sequence[TraceArrival],
    chains: Sequence[Sequence[TraceArrival]],
    happen: Callable[[], Awaitable[T]],
) -> tuple[DriveResult, T]:
    """`happen` begins when the load has, and is awaited to its end. Its times are of time.monotonic(): those of the
    records are seconds after DriveResult.start_s."""
    begun = asyncio.Event()

    def progress(_: Progress) -> None:
        begun.set()

    async def wait_and_happen() -> T:
        await begun.wait()
        return await happen()

    target = await look(settings)
    happening = asyncio.create_task(wait_and_happen())
    try:
        driven = await drive(settings, target, due, progress, chains)
        begun.set()
        return driven, await happening
    finally:
        happening.cancel()


def settings_for(
    target: str, seconds: float, clients: int | None, trace: str = "steady", rate: float = 1.0, seed: int = 0
) -> RunSettings:
    return RunSettings(target, trace, rate, seconds, seed=seed, clients=clients, drain_s=GIVE_UP_S)


def places(count: int, context: int, output: int, seconds: float, first_index: int = 0) -> list[list[TraceArrival]]:
    """Chains that keep `count` sequences decoding: who ends is replaced. The first outputs are of even lengths, so that
    the places aren't filled anew all at once."""
    turns = 2 + int(seconds / (output * TURN_S))
    return [
        [
            TraceArrival(
                first_index + place + turn * count,
                0.0,
                with_slo(context, output if turn else max(2, output * (place + 1) // count)),
            )
            for turn in range(turns)
        ]
        for place in range(count)
    ]


def last_index(chains: Iterable[Sequence[TraceArrival]]) -> int:
    return max(arrival.index for chain in chains for arrival in chain)


def trace_arrivals(scale: Scale, trace: str, rate: float, seconds: float, seed: int) -> list[TraceArrival]:
    return arrivals(scaled(load_trace(trace), scale.traces), rate, seconds, seed)


def warm_up(target: str, scale: Scale, clients: int | None) -> None:
    """A little of everything, so that nothing is done for the first time when it counts."""
    seconds = min(WARM_UP_S, 2 * scale.window_s)
    due = trace_arrivals(scale, "mixed", 8.0, seconds, 99)

    async def drive_it() -> None:
        settings = settings_for(target, seconds, clients, "mixed", 8.0, 99)
        await drive(settings, await look(settings), due)

    asyncio.run(drive_it())


def said_of(driven: DriveResult) -> dict[str, Any]:
    """Returns what tells whether the client or the server was measured."""
    lateness = distribution(r.sent_s - r.scheduled_s for r in driven.records)
    assert lateness is not None
    return {
        "problems": problems(driven.records, lateness, driven.clients),
        "lateness_p99_s": lateness.p99,
        "load_processes": [
            {"busy": round(c.busy, 3), "requests": c.requests, "loop_lag_p99_s": c.loop_lag_s and c.loop_lag_s.p99}
            for c in driven.clients
        ],
        "target": driven.target.server,
    }


def gaps(records: Iterable[RequestRecord]) -> list[tuple[float, float]]:
    """(when it ended, how long it was) of every gap between two messages with tokens, in seconds of the run."""
    return [(after, after - before) for record in records for (before, _), (after, _) in pairwise(record.token_times())]


def gaps_between(records: Iterable[RequestRecord], begin_s: float, end_s: float) -> list[float]:
    """Returns the gaps that ended in the window."""
    return [gap for at, gap in gaps(records) if begin_s <= at < end_s]


def running_at(records: Iterable[RequestRecord], at_s: float) -> list[RequestRecord]:
    """Streams with a token before the moment that had not ended then."""
    return [r for r in records if r.first_s is not None and r.first_s < at_s < r.done_s]


def lost(records: Iterable[RequestRecord]) -> list[str]:
    """Why requests failed or were refused, but for those that the client itself gave up at the end."""
    return [r.reason for r in records if r.outcome is not Outcome.DONE and r.reason != UNFINISHED]


def pause(record: RequestRecord, begin_s: float, end_s: float) -> float:
    """The longest time without a token that overlaps the window; a stream whose end never came counts to the end of the
    run."""
    times = [at for at, _ in record.token_times()]
    if record.outcome is not Outcome.DONE:
        times.append(record.done_s)
    return max((b - a for a, b in pairwise(times) if b > begin_s and a < end_s), default=0.0)
