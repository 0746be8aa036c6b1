"""The data of the page about policies: simulations of every case, and what was measured, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from figures.cases import BUILT_IN, RATES, SLOS, TRACES, Case, Contender, default_cases, trace_for
from figures.changing_load import BIN_S, CONTENDERS, LOOK_S, PHASES, follow
from figures.goodput_estimate import Crossing
from figures.run_table import Key, Sheet, goodput_of, sheets
from figures.simulated_cases import GROWTH, SimulationSettings, search
from figures.watch import Watched
from semipd.bench.arrivals import arrivals
from semipd.bench.errors import CommandError
from semipd.bench.runs.search import SearchSettings
from semipd.bench.settings import DRAIN_S
from semipd.bench.traces import load_trace
from semipd.policies.registry import make_policy
from semipd.profiles.profile import Profile, load_profile
from semipd.sim.replay import replay
from semipd.sim.run import SimConfig

NAME = "policies_simulated"
TOLERANCE = 0.03
REPEATS = 2
MOST_RUNS = 60
WATCHED_S = 20.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The simulations to run."""

    profile: str
    seconds: float
    tolerance: float = TOLERANCE
    repeats: int = REPEATS
    further: tuple[Contender, ...] = ()
    """Policies beyond the built-in ones."""


def searched(case: Case, plan: Plan, folder: Path) -> dict[str, Any]:
    """Its goodput, and what the policy did at it. In a process of its own."""
    head = {"policy": case.contender.policy, "options": dict(case.contender.options)}
    head |= {"trace": case.trace, "slo": case.slo}
    profile = load_profile(plan.profile)
    settings = SearchSettings(
        RATES[case.trace, case.slo][1],
        tolerance=plan.tolerance,
        repeats=plan.repeats,
        growth=GROWTH,
        lowest=0.25,
        highest=500.0,
        most_runs=MOST_RUNS,
    )
    try:
        found = search(case, settings, SimulationSettings(profile, folder, plan.seconds, DRAIN_S))
        at = found.goodput.value or found.goodput.passed
        watched = None if at is None else watch(case, at, profile, folder)
    except CommandError as error:
        return head | {"error": str(error)}
    return head | {
        "goodput": asdict(found.goodput),
        "likely": found.likely,
        "rates": [(round(probe.rate, 4), probe.met, probe.total) for probe in found.probes],
        "at_goodput": watched,
    }


def watch(case: Case, rate: float, profile: Profile, folder: Path) -> dict[str, Any]:
    """Modes and shares while both phases had work."""
    who = case.contender
    config = SimConfig(who.policy, dict(who.options), profile)
    policy = Watched(make_policy(who.policy, dict(who.options)), WATCHED_S, WATCHED_S)
    due = arrivals(load_trace(trace_for(case.trace, case.slo, folder)), rate, WATCHED_S, 0)
    replay(policy, due, config.settings(), config.times, until_s=WATCHED_S)
    return policy.bins[0].plain()


def followed(who: Contender, plan: Plan) -> dict[str, Any]:
    return follow(who, load_profile(plan.profile))


def simulate_all(plan: Plan, folder: Path, workers: int, console: Console) -> dict[str, Any]:
    """Every case and the shifting load, on so many processes."""
    further = [Case(who, trace, slo) for slo in SLOS for trace in TRACES for who in plan.further]
    asked = [*default_cases(RATES), *further]
    for case in asked:
        trace_for(case.trace, case.slo, folder)  # before two processes write the same file
    searches: list[dict[str, Any]] = []
    shifts: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
    ):
        running = {pool.submit(followed, who, plan): shifts for who in CONTENDERS}
        longest_first = sorted(asked, key=lambda case: case.contender.policy != "adaptive")  # it thinks the most
        running |= {pool.submit(searched, case, plan, folder): searches for case in longest_first}
        task = bar.add_task("simulating", total=len(running))
        try:
            for future in as_completed(running):
                row = future.result()
                running[future].append(row)
                bar.advance(task)
                console.print(line_of(row), highlight=False)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    place = {case.label: number for number, case in enumerate(asked)}
    searches.sort(key=lambda row: place[case_of(row).label])
    shifts.sort(key=lambda row: [who.policy for who in CONTENDERS].index(row["policy"]))
    profile = load_profile(plan.profile)
    return {
        "profile": plan.profile,
        "recorded": profile.source.recorded,
        "gpu": profile.gpu.name,
        "model": profile.model.name,
        "seconds": plan.seconds,
        "seeds": plan.repeats,
        "tolerance": plan.tolerance,
        "searches": searches,
        "shift": {
            "phases": [asdict(phase) for phase in PHASES],
            "bin_s": BIN_S,
            "look_s": LOOK_S,
            "policies": shifts,
        },
    }


def line_of(row: dict[str, Any]) -> str:
    """Returns a line about what has just been found."""
    if "bins" in row:
        return f"{row['policy']} under the shifting load: done"
    end = row.get("error") or f"{Crossing(**row['goodput']).said()} requests/s"
    return f"{case_of(row).label}: {end}"


@dataclass(frozen=True, slots=True)
class PolicyComparison:
    """`simulated` is the content of policies_simulated.json; `sheet` has no runs where nothing was measured."""

    simulated: dict[str, Any]
    sheet: Sheet

    @classmethod
    def of(cls, simulated: dict[str, Any], results: Path) -> PolicyComparison:
        return cls(simulated, Sheet.read(sheets([results])))

    def contenders(self) -> list[Contender]:
        """The built-in ones first, in their order; then what else was measured."""
        simulated = (case_of(row).contender for row in self.simulated["searches"])
        return list(dict.fromkeys((*BUILT_IN, *simulated, *(who for who, _, _ in self.sheet.by_key()))))

    def goodputs(self) -> Mapping[Key, Crossing]:
        return {
            (case.contender, case.trace, case.slo): Crossing(**row["goodput"])
            for row in self.simulated["searches"]
            if "goodput" in row
            for case in [case_of(row)]
        }

    def measured(self) -> Mapping[Key, Crossing]:
        return {key: goodput_of(runs) for key, runs in self.sheet.by_key().items()}

    def row(self, who: Contender, trace: str, slo: str) -> dict[str, Any] | None:
        rows: list[dict[str, Any]] = self.simulated["searches"]
        return next((row for row in rows if case_of(row) == Case(who, trace, slo)), None)


def case_of(row: Mapping[str, Any]) -> Case:
    return Case(Contender(row["policy"], tuple(row["options"].items())), row["trace"], row["slo"])
