"""Measures how many streams one machine can send and score, with load generator and a trivial gRPC server on it.

Each stream has 20 tokens a second for 5 seconds; streams start evenly spaced, open loop, so that as many run at any
time as the row says. Each side has a process for every two cores (one each on one core).

A row holds where the run is valid by the same rules as any other, every request was done, the first token, which the
server sends at once, came within 50 ms at p99, and the others kept their pace within 5 %. Those two are the server's
limit before they are the client's: gRPC's asyncio server takes one new stream a turn of its event loop. A row that does
not hold is measured once more, for the sake of machines that also do other things.

    python benchmarks/client_capacity.py [--save] [--cores 1,2] [--streams 25,50,100]
"""

from __future__ import annotations

import argparse
import asyncio
import os
from dataclasses import asdict, dataclass

from provenance import save

from semipd.bench.arrivals import TraceArrival
from semipd.bench.load.drive import DriveResult, drive, look
from semipd.bench.runs.run import report
from semipd.bench.scoring.records import RequestRecord
from semipd.bench.settings import RunSettings
from semipd.bench.targets.sink import Sink
from semipd.bench.traces import TraceEntry

PACE_S = 0.05
TOKENS = 101
STREAM_S = (TOKENS - 1) * PACE_S
PROMPT = 234
DURATION_S = 15.0
MAX_SLOWDOWN = 1.05
MAX_FIRST_S = 0.05
STREAMS = (25, 50, 100, 200, 300, 400, 500, 600, 800, 1000, 1200, 1600, 2400, 3200)


@dataclass(frozen=True)
class Row:
    cores: int
    streams: int
    tokens_per_s: float
    load_processes: int
    busiest_process: float
    send_lateness_p99_ms: float
    loop_lag_p99_ms: float
    ttft_p99_ms: float
    tpot_mean_ms: float
    itl_p99_ms: float
    problems: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not self.problems


def measure(cores: int, streams: int) -> Row:
    processes = max(1, cores // 2)
    entry = TraceEntry(PROMPT, TOKENS, 1.0, PACE_S * MAX_SLOWDOWN)
    times = [i * STREAM_S / streams for i in range(int(DURATION_S * streams / STREAM_S))]
    due = [TraceArrival(i, at, entry) for i, at in enumerate(times)]
    with Sink(processes=processes, pace_s=PACE_S) as sink:
        settings = RunSettings(
            f"grpc://{sink.address}", "even", streams / STREAM_S, DURATION_S, clients=processes, drain_s=3 * STREAM_S
        )
        seen = report(settings, asyncio.run(driven(settings, due)))
    score = seen.score
    assert score.ttft_s is not None
    assert score.tpot_s is not None
    assert score.itl_s is not None
    problems = list(seen.problems)
    if score.done < score.sent:
        problems.append(f"{score.sent - score.done} of {score.sent} streams did not end well")
    if score.ttft_s.p99 > MAX_FIRST_S:
        problems.append(f"first tokens came late: TTFT p99 {score.ttft_s.p99 * 1e3:.0f} ms")
    if score.tpot_s.p99 > PACE_S * MAX_SLOWDOWN:
        problems.append(f"tokens did not keep their pace: TPOT p99 {score.tpot_s.p99 * 1e3:.1f} ms")
    return Row(
        cores=cores,
        streams=streams,
        # once the first streams end, as many start: the middle of the run is steady
        tokens_per_s=steady_tokens(seen.records) / (DURATION_S - STREAM_S),
        load_processes=processes,
        busiest_process=max(client.busy for client in seen.clients),
        send_lateness_p99_ms=seen.lateness_s.p99 * 1e3,
        loop_lag_p99_ms=max(c.loop_lag_s.p99 for c in seen.clients if c.loop_lag_s) * 1e3,
        ttft_p99_ms=score.ttft_s.p99 * 1e3,
        tpot_mean_ms=score.tpot_s.mean * 1e3,
        itl_p99_ms=score.itl_s.p99 * 1e3,
        problems=tuple(problems),
    )


async def driven(settings: RunSettings, due: list[TraceArrival]) -> DriveResult:
    return await drive(settings, await look(settings), due)


def steady_tokens(records: tuple[RequestRecord, ...]) -> int:
    """Counts the tokens that came while as many streams ended as began."""
    return sum(count for r in records for at, count in r.token_times() if STREAM_S <= at < DURATION_S)


def climb(cores: int, streams: list[int]) -> list[Row]:
    """Measures rows until one does not hold, on the first of the cores that this process has."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])  # children inherit it
    rows = []
    try:
        for number in streams:
            row = measure(cores, number)
            if not row.holds:
                row = measure(cores, number)
            rows.append(row)
            print(
                f"{row.cores:5} {row.streams:8} {row.tokens_per_s:9.0f} {row.busiest_process:8.0%} "
                f"{row.send_lateness_p99_ms:9.1f} {row.loop_lag_p99_ms:8.1f} {row.ttft_p99_ms:9.1f} "
                f"{row.tpot_mean_ms:8.1f} {row.itl_p99_ms:8.1f}  {'holds' if row.holds else '; '.join(row.problems)}",
                flush=True,
            )
            if not row.holds:
                break
    finally:
        os.sched_setaffinity(0, before)
    return rows


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    here = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description="How many streams one machine can send and score.")
    parser.add_argument("--save", action="store_true", help="keep the rows in benchmarks/results")
    parser.add_argument("--cores", type=numbers, default=[n for n in (1, 2, 4, 8, 16, 32) if n <= here])
    parser.add_argument("--streams", type=numbers, default=list(STREAMS))
    given = parser.parse_args()
    before = os.getloadavg()[0]  # of other work on this machine
    print("cores  streams  tokens/s  busiest  late p99  lag p99  TTFT p99  TPOT ms  ITL p99")
    rows = [row for cores in given.cores for row in climb(cores, given.streams)]
    if given.save:
        print(
            save(
                "client_capacity",
                {"load_average_before": before, "rows": [asdict(row) | {"holds": row.holds} for row in rows]},
            )
        )


if __name__ == "__main__":
    main()
