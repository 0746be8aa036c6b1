"""Runs the cases of a comparison in simulated time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from figures.cases import Case, trace_for
from figures.goodput_estimate import Crossing, crossing
from semipd.bench.errors import RunFailed
from semipd.bench.runs.search import Probe, Search, SearchSettings, fitted
from semipd.bench.scoring.report import RunReport
from semipd.bench.settings import RunSettings
from semipd.profiles.profile import Profile
from semipd.sim.run import SimConfig, simulate

GROWTH = 1.3
"""Factor from one rate to the next, until one passed and one failed: about where the goodput lies is known."""


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """The settings of each run of a case. Seconds; `pages` 0: what fits beside the weights. `folder` holds traces."""

    profile: Profile
    folder: Path
    seconds: float
    drain_s: float
    pages: int = 0


@dataclass(frozen=True, slots=True)
class Searched:
    """The result of a search for the goodput."""

    goodput: Crossing
    likely: tuple[float, float] | None
    """95 % interval by the noise between and within runs; see semipd.bench.runs.search."""
    probes: tuple[Probe, ...]


def run_simulated(case: Case, rate: float, seed: int, asked: SimulationSettings) -> RunReport:
    """Simulates one run. Raises InputError or RunFailed."""
    who = case.contender
    config = SimConfig(who.policy, dict(who.options), asked.profile, pages=asked.pages)
    trace = trace_for(case.trace, case.slo, asked.folder)
    return simulate(config, RunSettings("", trace, rate, asked.seconds, seed, drain_s=asked.drain_s))


def inside(case: Case, rate: float, seed: int, asked: SimulationSettings) -> tuple[int, int]:
    """Returns how many requests were inside the SLO that they carry, and how many there were.

    Raises RunFailed where the policy had to be replaced.
    """
    report = run_simulated(case, rate, seed, asked)
    if not report.valid:
        raise RunFailed("; ".join(report.problems))
    return sum(record.met() for record in report.records), len(report.records)


def search(
    case: Case, settings: SearchSettings, asked: SimulationSettings, tell: Callable[[], None] = lambda: None
) -> Searched:
    """Searches as `semipd simulate goodput` does; `tell` hears of each rate. Between the rates that passed and failed
    the goodput is interpolated, on the curve that the search has fitted."""
    looking = Search(settings, lambda rate, seed: inside(case, rate, seed, asked))
    for _ in looking.steps():
        tell()
    found = looking.found()
    curve = dict(zip((probe.rate for probe in found.probes), fitted(found.probes), strict=True))
    return Searched(crossing(curve, settings.target), found.likely, found.probes)
