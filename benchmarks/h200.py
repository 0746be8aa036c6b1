"""All figures of the GPU back end, one script: a server on one GPU with Llama-3-8B's shape and random weights.

    python benchmarks/h200.py                                   # everything, into benchmarks/results/h200
    python benchmarks/h200.py --only engine,alone --out $OUT
    python benchmarks/h200.py --only goodput --rates chat=50,56,64 --rates long=6.8 --seconds chat=30 \\
        --serve all:kv_memory_gb=80 --serve chat:policy=static,prefill=52,decode=48
    python benchmarks/h200.py --table out1 out2                 # what was measured before, the best of each; of goodput
                                                                # also what benchmarks/policies.py measured

Sections: engine (in-process), alone, interference, split, chat, mixed, long (together: goodput), fault, memory, mps.
All but the engine's go through gRPC with the load generator of `semipd bench` on the same machine. Each section leaves
h200_SECTION.json (and .png) as soon as it ends, or fails: then the others go on. A server is started once for each set
of its options; policies are swapped while it runs. Logs of servers lie beside the results.

`--serve SECTION:NAME=VALUE,...` ("all" for every section): a field of ServerConfig is the server's, `policy` names the
policy, what is neither is the policy's option. `--tiny` runs all that a CPU can in seconds, with a small model: it
tests the script and measures nothing. A copy of the tree without its repository is told its commit by SEMIPD_COMMIT.

Exit code: 0 when every section that was asked for ran, 1 otherwise; verdicts don't count.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from figures.aims import AIMS, better, table  # noqa: E402
from figures.alone import alone  # noqa: E402
from figures.bench import Bench, NeedsGpu, limit  # noqa: E402
from figures.engine import engine  # noqa: E402
from figures.fault import fault  # noqa: E402
from figures.goodput import goodput  # noqa: E402
from figures.interference import interfere  # noqa: E402
from figures.memory import memory  # noqa: E402
from figures.mps import mps  # noqa: E402
from figures.section_results import Page  # noqa: E402
from figures.sizes import FULL, TINY, Scale  # noqa: E402
from figures.split import split  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "h200"
GOODPUT = ("chat", "mixed", "long")
LIMIT_S = 120.0
"""Seconds of a section, unless the scale says otherwise; a server's start included."""
RESERVE_S = 15.0
"""Seconds of the whole time that are kept to stop servers and print the table."""

Section = Callable[[Bench, Page], None]


def sections(rates: dict[str, tuple[float, ...]], seconds: dict[str, float]) -> dict[str, Section]:
    """Returns the sections in the order in which they run: those that leave the server as it was come first."""
    traces = {trace: goodput(trace, rates[trace], seconds[trace]) for trace in GOODPUT}
    return {
        "engine": engine,
        "alone": alone,
        "interference": interfere,
        "split": split,
        **traces,
        "memory": memory,
        "fault": fault,
        "mps": mps,
    }


def run_one(name: str, section: Section, bench: Bench, settings: dict[str, object], limit_s: float) -> Page:
    """Its page, saved, whatever happened."""
    page = Page(name, bench.out, settings)
    began = time.monotonic()
    try:
        with limit(limit_s):
            section(bench, page)
    except NeedsGpu as error:
        page.needs_gpu = True
        page.error = str(error)
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        page.error = f"{type(error).__name__}: {error}"
        page.result["traceback"] = traceback.format_exc().splitlines()[-12:]
    page.seconds = time.monotonic() - began
    page.save()
    found = ", ".join(f"{key} {value:.4g}" for key, value in page.figures.items())
    print(f"{name:13} {page.seconds:6.1f} s  {'; '.join(filter(None, [found, page.error])) or 'done'}", flush=True)
    return page


def pairs(given: Sequence[str], flag: str, separator: str = "=") -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, between, value = text.partition(separator)
        if not between:
            sys.exit(f"{flag}: {text!r} is not NAME{separator}VALUE")
        found[name] = f"{found[name]},{value}" if name in found else value
    return found


def chosen(text: str, known: Sequence[str]) -> list[str]:
    names = [name for part in filter(None, text.split(",")) for name in (GOODPUT if part == "goodput" else [part])]
    for name in names:
        if name not in known:
            sys.exit(f"no section is named {name!r}; there are {', '.join(known)} and goodput")
    return names


def show_folders(folders: Sequence[Path]) -> None:
    """The best that was measured in any of them."""
    measured: dict[str, float] = {}
    errors: dict[str, str] = {}
    for path in sorted(path for folder in folders for path in folder.glob("h200_*.json")):
        page = json.loads(path.read_text())
        for key, value in page["figures"].items():
            if key in AIMS:
                measured[key] = better(key, measured[key], value) if key in measured else value
        if page["error"]:
            errors[page["section"]] = page["error"]
    Console(width=150).print(table(measured, errors))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", default="")
    parser.add_argument("--skip", default="")
    parser.add_argument("--rates", action="append", default=[], metavar="TRACE=RATE,...")
    parser.add_argument("--seconds", action="append", default=[], metavar="TRACE=SECONDS")
    parser.add_argument("--serve", action="append", default=[], metavar="SECTION:NAME=VALUE,...")
    parser.add_argument("--clients", type=int, help="load processes (default: a quarter of the cores)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=580.0, help="seconds for everything (default %(default)g)")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--table", type=Path, nargs="+", metavar="DIR")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    if given.table:
        show_folders(given.table)
        return 0
    end = time.monotonic() + given.budget
    scale: Scale = TINY if given.tiny else FULL
    rates = dict(scale.rates)
    for trace, text in pairs(given.rates, "--rates").items():
        rates[trace] = tuple(float(rate) for rate in text.split(","))
    seconds = dict(scale.run_s) | {trace: float(text) for trace, text in pairs(given.seconds, "--seconds").items()}
    every = sections(rates, seconds)
    names = chosen(given.only, list(every)) or list(every)
    skipped = chosen(given.skip, list(every))
    serve = pairs(given.serve, "--serve", ":")
    given.out.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in asdict(scale).items() if key != "limits_s"} | {
        "serve": serve,
        "seed": given.seed,
        "rates": rates,
        "run_s": seconds,
    }
    pages = []
    with Bench(scale, given.out, serve, given.seed, given.clients) as bench:
        for name in every:
            if name not in names or name in skipped:
                continue
            left = end - RESERVE_S - time.monotonic()
            if left < RESERVE_S:
                print(f"{name:13} left out: the time is over", flush=True)
                continue
            limit_s = min(left, scale.limits_s.get(name, LIMIT_S))
            pages.append(run_one(name, every[name], bench, settings, limit_s))
    measured = {key: value for page in pages for key, value in page.figures.items()}
    shown = table(measured, {page.section: page.error for page in pages if page.error})
    if scale is TINY:
        shown.title = "a small model on this machine's CPUs: that there are figures is all that these say"
    Console(width=150).print(shown)
    return int(any(page.error and not page.needs_gpu for page in pages))


if __name__ == "__main__":
    sys.exit(main())
