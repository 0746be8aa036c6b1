"""The simulator against what was measured: every run in benchmarks/results/h200_{chat,mixed,long}.json again, simulated
with the same policy, options, trace, rate, duration, seed and pages.

    python benchmarks/simulator_against_gpu.py [--profile FILE] [--results DIR]

Writes benchmarks/results/simulator_against_gpu.json and prints a table: measured, simulated.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from provenance import RESULTS, save

from semipd.bench.settings import RunSettings
from semipd.sim.profile import SHIPPED, load_profile
from semipd.sim.run import Laboratory, simulate

FIGURES = (
    ("ttft_s", "p50"),
    ("ttft_s", "p90"),
    ("tpot_s", "p50"),
    ("tpot_s", "p90"),
    ("itl_s", "p50"),
    ("itl_s", "p90"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default=SHIPPED)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    profile = load_profile(given.profile)
    rows = []
    titles = [f"{name.split('_')[0].upper()} {q}" for name, q in FIGURES]
    print(f"{'':34}{'inside':>15}" + "".join(f"{title:>16}" for title in titles))
    for trace in ("chat", "mixed", "long"):
        measured = json.loads((given.results / f"h200_{trace}.json").read_text())["result"]
        options = {key: value for key, value in measured["policy"].items() if key != "name"}
        for run in measured["runs"]:
            if not run["valid"]:
                continue
            laboratory = Laboratory(
                measured["policy"]["name"], options, profile, pages=int(run["server"]["total_pages"])
            )
            asked = RunSettings("", trace, run["rate"], run["seconds"], run["seed"])
            row = compared(run["score"], simulate(laboratory, asked).score)
            rows.append({"trace": trace, "rate": run["rate"], "policy": measured["policy"], **row})
            cells = "".join(f"{m:8.1f}{s:8.1f}" for m, s in (row[title] for title in titles))
            inside = "".join(f"{100 * share:7.1f}" for share in row["inside"])
            label = f"{trace} at {run['rate']:g}/s, {measured['policy']['name']} {options}"
            print(f"{label[:33]:34}{inside:>15}{cells}")
    print(
        save("simulator_against_gpu", {"profile": given.profile, "milliseconds": "measured, simulated", "runs": rows})
    )


def compared(measured: dict[str, Any], simulated: Any) -> dict[str, Any]:
    """Measured and simulated of each figure; latencies in milliseconds."""
    found: dict[str, Any] = {"inside": (measured["attainment"], simulated.attainment)}
    for name, q in FIGURES:
        pair = (1e3 * measured[name][q], 1e3 * getattr(getattr(simulated, name), q))
        found[f"{name.split('_')[0].upper()} {q}"] = tuple(round(value, 2) for value in pair)
    return found


if __name__ == "__main__":
    main()
