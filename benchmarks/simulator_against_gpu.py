"""The simulator against what was measured on a GPU: every run again in simulated time, and the goodput out of them.

    python benchmarks/simulator_against_gpu.py [--profile FILE] [--results DIR] [--out DIR]

Reads h200_policies.json (benchmarks/policies.py) and h200_{chat,mixed,long}.json (benchmarks/h200.py) in DIR, as far
as they are there. Each run is simulated with the same policy, options, trace, SLO, rate, duration, drain, seed and
pages. Goodput comes out of the same rates in the same way (figures/goodput_estimate.py); where they don't bracket the
simulated one, further rates are simulated, 4 % apart. It is compared only where the measured one is bracketed.

Writes simulator_against_gpu.json, in benchmarks/results unless told, and prints two tables: measured, simulated.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from figures.cases import Case, Contender
from figures.goodput_estimate import Crossing, crossing, pooled
from figures.run_table import Sheet, attained, goodput_of, key_of, label_of, longest, sheets
from figures.simulated_cases import SimulationSettings, inside, run_simulated
from provenance import RESULTS, save

from semipd.bench.errors import RunFailed
from semipd.profiles.profile import SHIPPED, Profile, load_profile

FIGURES = (("ttft_s", "p50"), ("ttft_s", "p90"), ("tpot_s", "p50"), ("tpot_s", "p90"), ("itl_s", "p90"))
TITLES = tuple(f"{name.split('_')[0].upper()} {q}" for name, q in FIGURES)
CLOSE = 0.10
POLICIES, TRACES = 3, 2
"""The aim: this number of policies within CLOSE on this number of traces."""
STEP = 1.04
STEPS = 40
"""Most further rates: a factor of 4.8 in all."""
OLDER_DRAIN_S = 40.0
"""Drain of the runs of h200.py, in seconds."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default=SHIPPED)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    profile = load_profile(given.profile)
    measured = measured_runs(given.results)
    if not measured:
        print(f"no h200_policies.json and no h200_TRACE.json with valid runs in {given.results}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        runs = simulated_runs(measured, profile, Path(folder))
        goodputs = compared_goodputs(measured, runs, profile, Path(folder))
    verdict = verdict_of(goodputs)
    print_goodputs(goodputs, verdict)
    found = {"profile": given.profile, "recorded": profile.source.recorded, "milliseconds": "measured, simulated"}
    result = found | {"verdict": verdict, "goodputs": goodputs, "runs": runs}
    print(save("simulator_against_gpu", result, given.out))
    return 0


def measured_runs(folder: Path) -> list[dict[str, Any]]:
    """The valid ones; of the same run in both files, that of the comparison of policies."""
    sheet = Sheet.read(sheets([folder]))
    older = [run for trace in ("chat", "mixed", "long") for run in older_runs(folder / f"h200_{trace}.json", trace)]
    there = {(*key_of(run), run["rate"]) for run in sheet.runs}
    runs = sheet.runs + [run for run in older if (*key_of(run), run["rate"]) not in there]
    return sorted(
        (run for run in runs if run["valid"]), key=lambda run: (run["trace"], run["slo"], run["policy"], run["rate"])
    )


def older_runs(path: Path, trace: str) -> list[dict[str, Any]]:
    """Returns the runs of a section of h200.py, in the shape of those of a sheet."""
    if not path.exists():
        return []
    result = json.loads(path.read_text(encoding="utf-8"))["result"]
    options = {name: value for name, value in result["policy"].items() if name != "name"}
    head = {"policy": result["policy"]["name"], "options": options, "trace": trace, "slo": "tight"}
    return [head | {"drain_s": OLDER_DRAIN_S} | run for run in result["runs"]]


def simulated_runs(measured: Iterable[dict[str, Any]], profile: Profile, folder: Path) -> list[dict[str, Any]]:
    """A row for each; latencies in milliseconds."""
    rows = []
    print(f"{'':50}{'inside':>15}" + "".join(f"{title:>16}" for title in TITLES))
    for run in measured:
        row = {name: run[name] for name in ("policy", "options", "trace", "slo", "rate", "seconds", "seed")}
        try:
            found = run_simulated(case_of(run), run["rate"], run["seed"], asked_of(run, profile, folder))
        except RunFailed as error:
            rows.append(row | {"requests": run["score"]["sent"], "error": str(error)})
            print(f"{label_of(run)} at {run['rate']:g}/s: {error}")
            continue
        row |= {"requests": run["score"]["sent"], "problems": list(found.problems)}
        row |= {"inside": (run["score"]["attainment"], round(found.score.attainment, 6))}
        row |= {title: pair(run["score"], found.score, *name) for title, name in zip(TITLES, FIGURES, strict=True)}
        rows.append(row)
        cells = "".join("".join(f"{'-' if v is None else f'{v:.1f}':>8}" for v in row[title]) for title in TITLES)
        shares = "".join(f"{100 * share:7.1f}" for share in row["inside"])
        line = f"{label_of(run)}, {run['rate']:g}/s"
        print(f"{line[:49]:50}{shares:>15}{cells}", flush=True)
    return rows


def pair(measured: dict[str, Any], simulated: Any, name: str, q: str) -> tuple[float | None, float | None]:
    seen, found = measured[name], getattr(simulated, name)
    return (
        None if seen is None else round(1e3 * seen[q], 2),
        None if found is None else round(1e3 * getattr(found, q), 2),
    )


def case_of(run: dict[str, Any]) -> Case:
    return Case(Contender(run["policy"], tuple(run["options"].items())), run["trace"], run["slo"])


def asked_of(run: dict[str, Any], profile: Profile, folder: Path) -> SimulationSettings:
    return SimulationSettings(profile, folder, run["seconds"], run["drain_s"], int(run["server"]["total_pages"]))


def compared_goodputs(
    measured: list[dict[str, Any]], simulated: list[dict[str, Any]], profile: Profile, folder: Path
) -> list[dict[str, Any]]:
    """A row for each policy, trace and SLO."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for run in measured:
        groups.setdefault(key_of(run), []).append(run)
    rows = []
    for key, runs in groups.items():
        row: dict[str, Any] = {name: runs[0][name] for name in ("policy", "options", "trace", "slo")}
        seen = goodput_of(runs)
        rows.append(row | {"measured": seen.said(), "attainment": attained(runs), "ratio": None, "within": None})
        replayed = [r for r in simulated if key_of(r) == key]
        if any("error" in r or r["problems"] for r in replayed):
            rows[-1]["simulated"] = "-"
            continue
        shares = pooled((r["rate"], r["requests"], r["inside"][1]) for r in longest(replayed))
        found = bracketed(shares, runs, profile, folder)
        rows[-1] |= {"simulated": found.said(), "simulated_attainment": shares}
        if seen.value is not None and found.value is not None:
            ratio = found.value / seen.value
            rows[-1] |= {"ratio": round(ratio, 4), "within": abs(ratio - 1) <= CLOSE}
    return rows


def bracketed(shares: dict[float, float], runs: list[dict[str, Any]], profile: Profile, folder: Path) -> Crossing:
    """Simulates from the measured rates outwards, until one passes and one above it fails; `shares` grows."""
    found = crossing(shares)
    for _ in range(STEPS):
        if found.value is not None:
            break
        rate = max(shares) * STEP if found.passed is not None else min(shares) / STEP
        counts = [
            inside(case_of(run), rate, run["seed"], asked_of(run, profile, folder))
            for run in {run["seed"]: run for run in runs}.values()
        ]
        shares[rate] = sum(met for met, _ in counts) / sum(sent for _, sent in counts)
        found = crossing(shares)
    return found


def verdict_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A policy is close on a trace if it is so under every SLO whose goodput is known on both sides."""
    close: dict[str, set[str]] = {}
    for name in {label(row) for row in rows}:
        for trace in {row["trace"] for row in rows}:
            known = [row["within"] for row in rows if (label(row), row["trace"]) == (name, trace)]
            if any(within is not None for within in known) and False not in known:
                close.setdefault(trace, set()).add(name)
    both = [sorted(close[one] & close[other]) for one, other in combinations(sorted(close), TRACES)]
    best = max(both, key=len, default=[])
    return {
        "aim": f"goodput within {CLOSE:.0%} for at least {POLICIES} policies on {TRACES} traces",
        "met": len(best) >= POLICIES,
        "policies": best,
        "compared": sum(row["within"] is not None for row in rows),
        "within": sum(bool(row["within"]) for row in rows),
    }


def label(row: dict[str, Any]) -> str:
    return case_of(row).contender.label


def print_goodputs(rows: list[dict[str, Any]], verdict: dict[str, Any]) -> None:
    print(f"\n{'goodput, requests/s':50}{'measured':>10}{'simulated':>12}{'ratio':>8}")
    for row in rows:
        close = {None: "", True: "  close", False: "  OFF"}[row["within"]]
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        print(f"{label_of(row)[:49]:50}{row['measured']:>10}{row['simulated']:>12}{ratio:>8}{close}")
    print(
        f"{verdict['aim']}: {'met' if verdict['met'] else 'not met'} "
        f"({verdict['within']} of {verdict['compared']} that can be compared are within; "
        f"the same policies on two traces: {', '.join(verdict['policies']) or 'none'})"
    )


if __name__ == "__main__":
    sys.exit(main())
