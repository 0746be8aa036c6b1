"""The runs of a comparison of policies, on disk after each: h200_policies.json.

`result.runs` has a line a run: policy, options, trace, slo, then what `figures.goodput.summary` says of any run;
`session` is the place in `result.sessions` of the settings and the machine it was measured with. Files of several
sessions merge into one. Runs of one rate that differ in length or seed are all kept; what is said of the rate is said
by the longest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from figures.cases import Case, Contender
from figures.goodput_estimate import Crossing, crossing, pooled
from semipd.bench.provenance import provenance
from semipd.core.plain import to_plain

NAME = "h200_policies.json"
SECTION = "policies"

Key = tuple[Contender, str, str]
"""Policy, trace, SLO."""


class Sheet:
    def __init__(self) -> None:
        self.sessions: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        """Cases that ended in an error."""

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Sheet:
        """All runs of these files; of the same run the one of the later file counts, as does a run for a failure."""
        found = cls()
        runs: dict[tuple[Any, ...], dict[str, Any]] = {}
        failures: dict[tuple[Any, ...], dict[str, Any]] = {}
        for path in paths:
            result = json.loads(path.read_text(encoding="utf-8"))["result"]
            first = len(found.sessions)
            found.sessions += result["sessions"]
            runs |= {identity(run): run | {"session": run["session"] + first} for run in result["runs"]}
            for failure in result["failures"]:
                failures[key_of(failure), failure["rate"]] = failure | {"session": failure["session"] + first}
        found.runs = list(runs.values())
        found.failures = [failure for failure in failures.values() if not found.measured(failure)]
        return found

    def open_session(self, settings: dict[str, Any]) -> None:
        """Begins a session: what is added from now on was measured by this process, under these settings."""
        self.sessions.append({"provenance": asdict(provenance()), "settings": settings})

    def add(self, case: Case, drain_s: float, run: dict[str, Any]) -> None:
        whole = self._head(case) | {"drain_s": drain_s} | run
        self.runs = [other for other in self.runs if identity(other) != identity(whole)] + [whole]
        self.failures = [failure for failure in self.failures if not self.measured(failure)]

    def fail(self, case: Case, rate: float, error: str) -> None:
        failed = self._head(case) | {"rate": rate, "error": error}
        others = [other for other in self.failures if (key_of(other), other["rate"]) != (key_of(failed), rate)]
        self.failures = [*others, failed]

    def _head(self, case: Case) -> dict[str, Any]:
        head = {"policy": case.contender.policy, "options": dict(case.contender.options)}
        return head | {"trace": case.trace, "slo": case.slo, "session": len(self.sessions) - 1}

    def measured(self, failure: dict[str, Any]) -> bool:
        return any(key_of(run) == key_of(failure) and run["rate"] == failure["rate"] for run in self.runs)

    def done(self, case: Case, rate: float, seconds: float, seed: int) -> dict[str, Any] | None:
        """The valid run that is there already."""
        wanted = (*key(case), rate, seconds, seed)
        return next((run for run in self.runs if run["valid"] and identity(run) == wanted), None)

    def by_key(self) -> dict[Key, list[dict[str, Any]]]:
        """The valid runs of each policy, trace and SLO, by rate."""
        found: dict[Key, list[dict[str, Any]]] = {}
        for run in sorted(self.runs, key=lambda run: float(run["rate"])):
            if run["valid"]:
                found.setdefault(key_of(run), []).append(run)
        return found

    def passed(self) -> dict[str, float]:
        """Returns, by trace, the highest measured rate at which any policy passed under the tight SLO, in
        requests/s."""
        found: dict[str, float] = {}
        for (_, trace, slo), runs in self.by_key().items():
            rate = goodput_of(runs).passed
            if slo == "tight" and rate is not None:
                found[trace] = max(rate, found.get(trace, rate))
        return found

    def save(self, folder: Path) -> Path:
        """Whole or not at all: a kill while it is written leaves the former file."""
        ends = {key: (attained(runs), goodput_of(runs)) for key, runs in self.by_key().items()}
        goodput = [
            {"policy": who.policy, "options": dict(who.options), "trace": trace, "slo": slo}
            | {"attainment": shares, "goodput": asdict(found)}
            for (who, trace, slo), (shares, found) in ends.items()
        ]
        result = {"sessions": self.sessions, "runs": self.runs, "failures": self.failures, "goodput": goodput}
        error = "; ".join(f"{label_of(failure)}: {failure['error']}" for failure in self.failures)
        figures = {f"goodput_{trace}": rate for trace, rate in self.passed().items()}
        head = {"section": SECTION, "figures": figures, "error": error}  # as h200.py --table reads any file here
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / NAME
        fresh = path.with_suffix(".new")
        fresh.write_text(text_of(to_plain(head), to_plain(result)), encoding="utf-8")
        os.replace(fresh, path)
        return path


def text_of(head: dict[str, Any], result: dict[str, Any]) -> str:
    """JSON with a line for each entry of a list."""
    lists = ",\n".join(
        f'  "{name}": [' + ",".join(f"\n   {json.dumps(entry)}" for entry in entries) + "]"
        for name, entries in result.items()
    )
    begin = "".join(f" {json.dumps(name)}: {json.dumps(value)},\n" for name, value in head.items())
    return f'{{\n{begin} "result": {{\n{lists}\n }}\n}}\n'


def sheets(folders: Sequence[Path]) -> list[Path]:
    """The files that are there."""
    return [path for folder in folders if (path := folder / NAME).exists()]


def key(case: Case) -> Key:
    return case.contender, case.trace, case.slo


def key_of(run: dict[str, Any]) -> Key:
    return Contender(run["policy"], tuple(run["options"].items())), run["trace"], run["slo"]


def identity(run: dict[str, Any]) -> tuple[Any, ...]:
    """Returns what makes two runs the same measurement."""
    return (*key_of(run), run["rate"], run["seconds"], run["seed"])


def label_of(run: dict[str, Any]) -> str:
    who, trace, slo = key_of(run)
    return Case(who, trace, slo).label


def longest(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns, for each rate, the runs with the most seconds of arrivals. Near saturation a queue grows as long as a
    run goes on, so a short run says less; pooled with a long one it would hide what that saw."""
    most: dict[float, float] = {}
    for run in runs:
        most[run["rate"]] = max(run["seconds"], most.get(run["rate"], 0.0))
    return [run for run in runs if run["seconds"] == most[run["rate"]]]


def attained(runs: Sequence[dict[str, Any]]) -> dict[float, float]:
    """Returns the attainment by rate, of the longest runs; seeds are pooled."""
    return pooled((run["rate"], run["score"]["sent"], run["score"]["attainment"]) for run in longest(runs))


def goodput_of(runs: Sequence[dict[str, Any]]) -> Crossing:
    return crossing(attained(runs))
