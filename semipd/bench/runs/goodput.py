"""The goodput of a server: whole runs at the rates that the search asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from semipd.bench.drawing.pictures import rate_point
from semipd.bench.drawing.plots import Curve, draw_rates
from semipd.bench.errors import InputError, RunFailed
from semipd.bench.runs.run import run
from semipd.bench.runs.search import Probe, Search, SearchEnding, SearchResult, SearchSettings
from semipd.bench.scoring.report import RunReport
from semipd.bench.settings import RunSettings
from semipd.bench.traces import LOOSE
from semipd.bench.writable import ready_to_write
from semipd.core.plain import from_plain, read_json, write_json

FEW = 100
"""Below so many requests at an end of the interval, the result is said to rest on little."""

Runner = Callable[[RunSettings], RunReport]


KIND = "semipd bench goodput"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Goodput:
    """`runs` in the order in which they were made; their rates and seeds are in their settings."""

    search: SearchSettings
    loose: bool
    """True: requests were held to the loose SLO instead of the tight one."""
    found: SearchResult
    runs: tuple[RunReport, ...]
    kind: str = KIND
    format: int = FORMAT

    def save(self, path: Path) -> None:
        """Writes JSON with every run in full, except the gaps between tokens. Raises InputError where it can't be
        written."""
        write_json(replace(self, runs=tuple(without_gaps(run) for run in self.runs)), path)

    def curve(self) -> Curve:
        """Every rate that was measured, its runs pooled."""
        points = [
            rate_point(
                [run for run in self.runs if run.settings.rate == probe.rate],
                None if self.loose else probe.confidence,
            )
            for probe in self.found.probes
        ]
        return Curve(self.runs[0].target.model, tuple(points))


def without_gaps(run: RunReport) -> RunReport:
    return replace(run, records=tuple(replace(record, gaps_s=(), counts=()) for record in run.records))


def read_goodput(path: Path) -> Goodput:
    """Raises InputError where the file is not such a result of this version."""
    given = read_json(path)
    if not isinstance(given, dict) or (given.get("kind"), given.get("format")) != (KIND, FORMAT):
        raise InputError(f"{path}: not a result of `semipd bench goodput`")
    return from_plain(Goodput, given, str(path))


def measure_goodput(
    base: RunSettings, search: SearchSettings, *, loose: bool, runner: Runner, tell: Callable[[Probe], None]
) -> Goodput:
    """Makes the runs that the search asks for; of `base`, rate and seed are replaced.

    `tell` hears of each rate after its runs. Raises RunFailed at the first run that is invalid: a search that goes on
    over it would look like a result. What a run raises passes.
    """
    runs: list[RunReport] = []

    def measure(rate: float, seed: int) -> tuple[int, int]:
        report = runner(replace(base, rate=rate, seed=seed))
        if not report.valid:
            raise RunFailed(
                f"the run at {rate:.4g} requests/s with seed {seed} is invalid, so the search was given up: "
                + "; ".join(report.problems)
            )
        runs.append(without_gaps(report))  # hours of gaps don't fit into memory
        factor = LOOSE if loose else 1.0
        return sum(record.met(factor) for record in report.records), len(report.records)

    looking = Search(search, measure)
    for probe in looking.steps():
        tell(probe)
    return Goodput(search, loose, looking.found(), tuple(runs))


def search_goodput(
    base: RunSettings,
    search: SearchSettings,
    *,
    loose: bool,
    json_file: Path | None,
    plot: Path | None,
    runner: Runner = lambda settings: asyncio.run(run(settings)),
) -> bool:
    """Searches for a person at a terminal: a line for each rate, the result, its files. Returns whether it was
    found."""
    ready_to_write(json_file, plot)
    console = Console(soft_wrap=True, highlight=False)
    result = measure_goodput(
        base,
        search,
        loose=loose,
        runner=runner,
        tell=lambda probe: console.print(probe_line(probe, search.target)),
    )
    console.print(said(result))
    if json_file is not None:
        result.save(json_file)
    if plot is not None:
        draw_rates(plot / "rates.png", [result.curve()], f"{base.trace}: {said(result).splitlines()[0]}")
    return result.found.ending is SearchEnding.FOUND


def probe_line(probe: Probe, target: float) -> str:
    low, high = probe.confidence
    seeds = ", ".join(f"{run.met}/{run.total}" for run in probe.runs)
    verdict = "passed" if probe.attainment >= target else "failed"
    return (
        f"{probe.rate:9.4g} requests/s: {probe.attainment:6.1%} inside their SLO [{low:.1%}, {high:.1%}] "
        f"of {probe.total} ({seeds}): {verdict}"
    )


def said(result: Goodput) -> str:
    """The result in words."""
    found, target = result.found, result.search.target
    slo = "loose" if result.loose else "tight"
    lines = {
        SearchEnding.FOUND: f"goodput ({slo} SLO, {target:.0%} of requests): {rate(found.passed)} requests/s passed, "
        f"{rate(found.failed)} failed",
        SearchEnding.NONE_PASSED: f"no goodput: not even {rate(found.failed)} requests/s, the lowest rate allowed, has "
        f"{target:.0%} of its requests inside the {slo} SLO",
        SearchEnding.NONE_FAILED: f"the goodput is above {rate(found.passed)} requests/s, the highest rate allowed "
        f"({slo} SLO)",
        SearchEnding.OUT_OF_RUNS: f"not found within {result.search.most_runs} runs: passed {rate(found.passed)}, "
        f"failed {rate(found.failed)} requests/s ({slo} SLO)",
    }
    text = [lines[found.ending]]
    if found.likely is not None:
        text.append(
            f"95 % confidence, by the noise between and within runs: {rate(found.likely[0])} to "
            f"{rate(found.likely[1])} requests/s"
        )
    ends = [probe for probe in found.probes if probe.rate in (found.passed, found.failed)]
    if any(probe.total < FEW for probe in ends):
        text.append(f"Fewer than {FEW} requests decided an end of the interval: take longer runs or more of them.")
    return "\n".join(text)


def rate(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
