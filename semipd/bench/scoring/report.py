"""A run's report: one frozen object, as JSON and from JSON."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from semipd.bench.errors import InputError
from semipd.bench.scoring.records import RequestRecord
from semipd.bench.scoring.score import Distribution, Score
from semipd.bench.scoring.target_info import TargetInfo
from semipd.bench.scoring.timeline import LoadSample
from semipd.bench.scoring.validity import ClientUse
from semipd.bench.settings import RunSettings
from semipd.core.plain import from_plain, read_json, write_json
from semipd.core.provenance import Provenance

KIND = "semipd bench run"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class RunReport:
    """Everything that is known of a run. Times are seconds after its start."""

    settings: RunSettings
    target: TargetInfo
    provenance: Provenance
    problems: tuple[str, ...]
    """Why the run is invalid; empty where it is valid."""
    score: Score
    lateness_s: Distribution
    """Lateness of sending, over all requests."""
    clients: tuple[ClientUse, ...]
    timeline: tuple[LoadSample, ...]
    """Empty where the target does not tell its load."""
    records: tuple[RequestRecord, ...]
    """Records in the order of arrival. Those that were read from a file have gaps only where they were saved."""
    kind: str = KIND
    format: int = FORMAT

    @property
    def valid(self) -> bool:
        return not self.problems

    def save(self, path: Path, gaps: bool = False) -> None:
        """Writes JSON. `gaps`: with each request's gaps between tokens. Raises InputError where it can't be written."""
        kept = self if gaps else replace(self, records=tuple(replace(r, gaps_s=(), counts=()) for r in self.records))
        write_json(kept, path)


def read_report(path: Path) -> RunReport:
    """Raises InputError where the file is not a report of this version."""
    given = read_json(path)
    if not isinstance(given, dict) or (given.get("kind"), given.get("format")) != (KIND, FORMAT):
        raise InputError(f"{path}: not a report of `semipd bench run`")
    return from_plain(RunReport, given, str(path))
