"""Policies side by side on one GPU, in one server that goes on while they are swapped: attainment by rate, goodput.

    python benchmarks/policies.py                               # every built-in policy, as far as the time goes
    python benchmarks/policies.py --case static,mode=turns,chunk=1024:chat:tight:56,64 --case adaptive:long:loose \\
        --seconds chat=12 --seconds long=15 --budget 560 --out $OUT
    python benchmarks/policies.py --traces chat,long --slos tight               # the built-in ones, on these
    python benchmarks/policies.py --table out1 out2 [--out merged]              # what was measured before, together

A case is POLICY[:TRACE,...[:SLO,...[:RATE,...]]]; what is left out is every trace, both SLOs, the usual rates. Its
rates are run rising, until less than 60 % of the requests are inside their SLO. Requests carry the SLO that they are
held to: the trace's own is tight, loose is 10/7.5 of it. Each run begins with a new policy object, so it does not
matter what ran before; a policy that learns does so within the run. Before its first run a policy gets a few requests
that don't count: what its mode compiles when it is first used is there then.

After its arrivals a run waits --drain seconds for answers; what has not ended by then is a miss, in an overload many.
`on_pace` in a run counts those of them that were inside their SLO until then: were it much of a run, wait longer.

Goodput out of a few rates: see figures/goodput_estimate.py; of runs of one rate the longest counts. Results are in
h200_policies.json in --out after every run. What is there already is not run again, so the same command line goes on
where it was interrupted (--again: from the start).
`--tiny` runs a few seconds with a small model on a CPU: it tests the script and measures nothing.

Exit code: 0 when every case ran, 1 where one failed; the others go on.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from figures.bench import Bench, limit  # noqa: E402
from figures.cases import (  # noqa: E402
    RATES,
    SLOS,
    TINY_RATES,
    TRACES,
    Case,
    Contender,
    cases,
    default_cases,
    listed,
    positive,
    trace_for,
)
from figures.goodput import HOPELESS, said, summary  # noqa: E402
from figures.load import settings_for, trace_arrivals  # noqa: E402
from figures.power import PowerWatch  # noqa: E402
from figures.power import told as drawn  # noqa: E402
from figures.run_table import Sheet, attained, goodput_of, sheets  # noqa: E402
from figures.sizes import FULL, TINY, Scale  # noqa: E402

from semipd.bench.load.drive import drive, look  # noqa: E402
from semipd.bench.runs.run import run  # noqa: E402
from semipd.bench.scoring.records import UNFINISHED, RequestRecord  # noqa: E402
from semipd.bench.scoring.report import RunReport  # noqa: E402
from semipd.bench.settings import RunSettings  # noqa: E402
from semipd.core.plain import to_plain  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "h200"
SECONDS = {"chat": 12.0, "mixed": 12.0, "long": 15.0}
DRAIN_S = 20.0
BETWEEN_S = 3.0
"""Seconds, about, to start load processes and to swap the policy."""
RESERVE_S = 15.0
"""Seconds of the whole time that are kept to stop the server and print the table."""
TRIED_S, TRIED_RATE, TRIED_TOKENS = 1.5, 20.0, 48
"""Seconds, rate and output tokens of the requests that a policy gets before its first run."""
WARMED_UP_S = 4.0
"""Seconds of a run until the GPU's power counts (`gpu` in a run): by then there is a batch."""
STUCK_S = 40.0
"""Seconds beyond arrivals and drain until a run is given up."""


def main() -> int:
    given = arguments()
    if given.table:
        sheet = Sheet.read(sheets(given.table))
        Console(width=150).print(shown(sheet))
        if given.out is not None:
            print(sheet.save(given.out))
        return 0
    return measure(given)


def measure(given: argparse.Namespace) -> int:
    end = time.monotonic() + given.budget - RESERVE_S
    scale: Scale = TINY if given.tiny else FULL
    out: Path = given.out or RESULTS
    out.mkdir(parents=True, exist_ok=True)
    asked = wanted(given)
    seconds = (dict(scale.run_s) if given.tiny else SECONDS) | dict(given.seconds)
    sheet = Sheet.read([] if given.again else sheets([out]))
    sheet.open_session({"name": scale.name, "server": scale.server, "serve": given.serve, "clients": given.clients})
    with (
        tempfile.TemporaryDirectory() as folder,
        Bench(scale, out, wishes(asked, given.serve), given.seed, given.clients) as bench,
    ):
        comparison = Comparison(bench, sheet, seconds, given.drain, end, Path(folder))
        fine = [comparison.run(case) for case in asked]
    table = shown(sheet)
    if given.tiny:
        table.title = "a small model on this machine's CPUs: that there are figures is all that these say"
    Console(width=150).print(table)
    print(sheet.save(out))
    return int(not all(fine))


@dataclass
class Comparison:
    """Case after case on one server. Times in seconds; `end` is of time.monotonic()."""

    bench: Bench
    sheet: Sheet
    seconds: Mapping[str, float]
    """Seconds of arrivals, by trace."""
    drain_s: float
    end: float
    folder: Path
    """Folder of the traces."""
    warm: set[tuple[str, Contender]] = field(default_factory=set)
    """Pairs that were tried out already: the server by its address, and the policy."""

    def run(self, case: Case) -> bool:
        """Its rates, rising. Whether none of them failed."""
        seconds = self.seconds[case.trace]
        for rate in case.rates:
            there = self.sheet.done(case, rate, seconds, self.bench.seed)
            left = self.end - time.monotonic()
            if there is not None:
                print(f"{case.label} at {rate:g}/s: there already", flush=True)
            elif left < seconds + self.drain_s + BETWEEN_S:
                print(f"{case.label} at {rate:g}/s: left out, the time is over", flush=True)
                return True
            else:
                try:
                    with limit(min(left, self.bench.scale.start_s + seconds + self.drain_s + STUCK_S)):
                        there = self._one(case, rate)
                except (KeyboardInterrupt, SystemExit):
                    raise
                except Exception as error:
                    self.sheet.fail(case, rate, described(error))
                    self.sheet.save(self.bench.out)
                    print(f"{case.label} at {rate:g}/s: FAILED: {described(error)}", flush=True)
                    return False
            if there["score"]["attainment"] < HOPELESS:
                break
        return True

    def _one(self, case: Case, rate: float) -> dict[str, Any]:
        """A run under a new policy object, saved. A policy that the server replaced meanwhile makes it invalid."""
        bench = self.bench
        served, admin = bench.server(case.label)
        wanted = bench.wanted(case.label)
        if (served.address, case.contender) not in self.warm:
            asyncio.run(try_out(served.target, bench.scale, bench.clients))
            self.warm.add((served.address, case.contender))
        admin.set_policy(wanted.policy, wanted.policy_options)
        settings = RunSettings(
            *(served.target, trace_for(case.trace, case.slo, self.folder), rate, self.seconds[case.trace]),
            seed=bench.seed,
            clients=bench.clients,
            scale=bench.scale.traces,
            drain_s=self.drain_s,
        )
        with PowerWatch() as power:
            report = asyncio.run(run(settings))
        report = replace(report, settings=replace(settings, trace=case.trace))
        ran = admin.info().policy
        if ran != wanted.policy:
            replaced = f"the server replaced the policy by {ran}; see its log"
            report = replace(report, problems=(*report.problems, replaced))
        found = told(report, case) | {"gpu": drawn(power.looks, WARMED_UP_S, settings.duration_s)}
        self.sheet.add(case, self.drain_s, found)
        self.sheet.save(bench.out)
        print(f"{case.contender.label}, {case.slo}: {said(report)}", flush=True)
        return found


async def try_out(target: str, scale: Scale, clients: int | None) -> None:
    """A few requests under the policy that is there, so that what its mode compiles or allocates when it is first used
    is there when it counts. Short outputs: it is over soon."""
    due = [
        replace(arrival, entry=replace(arrival.entry, output_len=min(arrival.entry.output_len, TRIED_TOKENS)))
        for arrival in trace_arrivals(scale, "mixed", TRIED_RATE, TRIED_S, 99)
    ]
    settings = settings_for(target, TRIED_S, clients, "mixed", TRIED_RATE, 99)
    await drive(settings, await look(settings), due)


def told(report: RunReport, case: Case) -> dict[str, Any]:
    """Its summary, and of the requests that had not ended, how many were inside their SLO until then."""
    found: dict[str, Any] = to_plain(summary(report))
    if case.slo != "tight":
        found["score"]["attainment_loose"] = None  # it would be of a third SLO, looser than what the requests carried
    return found | {"on_pace": sum(on_pace(record) for record in report.records)}


def on_pace(record: RequestRecord) -> bool:
    if record.reason != UNFINISHED or record.ttft_s is None or record.ttft_s > record.ttft_slo_s:
        return False
    return record.tpot_s is None or record.tpot_s <= record.tpot_slo_s


def wanted(given: argparse.Namespace) -> list[Case]:
    rates = TINY_RATES if given.tiny else RATES
    try:
        traces, slos = listed(given.traces, TRACES, "trace"), listed(given.slos, SLOS, "SLO")
        found = [case for text in given.case for case in cases(text, rates)]
    except ValueError as error:
        sys.exit(str(error))
    if given.tiny and not given.traces:
        traces, slos = ["chat"], ["tight"]
    return found or default_cases(rates, traces, slos)


def wishes(asked: list[Case], serve: str) -> dict[str, str]:
    """Returns what the Bench serves by section: here, by case."""
    return {"all": serve} | {case.label: case.contender.server_options for case in asked}


def described(error: Exception) -> str:
    if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"


def shown(sheet: Sheet) -> Table:
    """A row for each policy, trace and SLO: attainment by rate, and goodput."""
    table = Table(title="policies: requests inside their SLO by rate, and goodput (90 %)")
    for name in ("trace", "SLO", "policy", "attainment at requests/s", "goodput, requests/s"):
        table.add_column(name, justify="right" if name.startswith("goodput") else "left")
    order = {name: place for place, name in enumerate((*TRACES, *SLOS))}
    found = sheet.by_key()
    last = None
    for who, trace, slo in sorted(found, key=lambda key: (order[key[1]], order[key[2]], key[0].label)):
        runs = found[who, trace, slo]
        if last not in (None, (trace, slo)):
            table.add_section()
        last = (trace, slo)
        shares = ", ".join(f"{rate:g}: {share:.1%}" for rate, share in attained(runs).items())
        table.add_row(trace, slo, who.label, shares, goodput_of(runs).said())
    return table


def trace_seconds(text: str) -> list[tuple[str, float]]:
    """Parses TRACE=SECONDS,..."""
    found = []
    for part in text.split(","):
        trace, _, seconds = part.partition("=")
        found.append((listed(trace, TRACES, "trace")[0], positive(seconds)))
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", default=[], metavar="POLICY[:TRACE,...[:SLO,...[:RATE,...]]]")
    parser.add_argument("--traces", default="", help="of the built-in policies, where there is no --case")
    parser.add_argument("--slos", default="")
    parser.add_argument("--seconds", type=trace_seconds, action="extend", default=[], metavar="TRACE=SECONDS,...")
    parser.add_argument("--drain", type=float, default=DRAIN_S, help="seconds (default %(default)g)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", default="", metavar="NAME=VALUE,...", help="options of the server")
    parser.add_argument("--clients", type=int, help="load processes (default: a quarter of the cores)")
    parser.add_argument("--budget", type=float, default=560.0, help="seconds for everything (default %(default)g)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--again", action="store_true", help="forget what is there already")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--table", type=Path, nargs="+", metavar="DIR")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
