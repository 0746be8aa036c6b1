"""Makes docs/policies-compared.md: what each policy does for goodput, simulated, and measured as far as it was.

    python benchmarks/policies_compared.py                   # simulate everything (minutes), then pictures and page
    python benchmarks/policies_compared.py --policy my-policy,chunk=256        # yours, too
    python benchmarks/policies_compared.py --page            # pictures and page alone, from the results as they are

Simulated: goodput of every built-in policy on every trace under both SLOs, and a load that shifts from chat to long
prompts and back; results go into benchmarks/results/policies_simulated.json. Measured: what benchmarks/policies.py
left in benchmarks/results/h200_policies.json, where it is there. The words around the figures are those of
benchmarks/policies_compared.template.md; each figure in them is filled in from the results, so run it again after new
measurements or with a new profile.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))  # also for the processes that are spawned

from figures.cases import contender
from figures.policy_comparison import NAME, REPEATS, TOLERANCE, Plan, PolicyComparison, simulate_all
from figures.policy_plots import draw_goodputs, draw_shift
from figures.policy_text import page
from provenance import RESULTS, save
from rich.console import Console

from semipd.profiles.profile import SHIPPED

TEMPLATE = Path(__file__).with_suffix(".template.md")
PAGE = Path(__file__).resolve().parent.parent / "docs" / "policies-compared.md"


def rendered(results: Path) -> tuple[PolicyComparison, str]:
    """The page out of the results in that folder."""
    compared = PolicyComparison.of(json.loads((results / f"{NAME}.json").read_text(encoding="utf-8")), results)
    against = results / "simulator_against_gpu.json"
    known = json.loads(against.read_text(encoding="utf-8")) if against.exists() else None
    return compared, page(TEMPLATE.read_text(encoding="utf-8"), compared, known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="simulate nothing")
    parser.add_argument(
        "--policy",
        type=contender,
        action="append",
        default=[],
        metavar="NAME,OPTION=VALUE,...",
        help="also",
    )
    parser.add_argument("--profile", default=SHIPPED)
    parser.add_argument("--seconds", type=float, default=60.0, help="of arrivals in a run (default %(default)g)")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="seeds at each rate (default %(default)d)")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="of a search (default %(default)g)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default %(default)d)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=PAGE, help="the page")
    given = parser.parse_args()
    if not given.page:
        further = tuple(dict.fromkeys(given.policy))
        plan = Plan(given.profile, given.seconds, given.tolerance, given.repeats, further)
        with tempfile.TemporaryDirectory() as folder:
            found = simulate_all(plan, Path(folder), given.workers, Console(stderr=True))
        print(save(NAME, found, given.results))
    compared, text = rendered(given.results)
    draw_goodputs(given.results / "policies_goodput.png", compared)
    draw_shift(given.results / "policies_shift.png", compared)
    given.out.write_text(text, encoding="utf-8")
    print(given.out)


if __name__ == "__main__":
    main()
