"""Reports come back from their files as they were, and other files are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from semipd.bench.drawing.table import table
from semipd.bench.errors import InputError
from semipd.bench.provenance import gpus, provenance
from semipd.bench.scoring.records import Outcome, RequestRecord
from semipd.bench.scoring.report import RunReport, read_report
from semipd.bench.scoring.score import distribution, score
from semipd.bench.scoring.target_info import TargetInfo
from semipd.bench.scoring.timeline import LoadSample
from semipd.bench.scoring.validity import ClientUse
from semipd.bench.settings import RunSettings

DONE = RequestRecord(
    0, 10, 3, 0.5, 0.2, 0.999, 1.0, Outcome.DONE, "", 3, 1.5, 1.75, 1.8, None, 0.15, (0.1, 0.15), (1, 1, 1)
)
REFUSED = RequestRecord(
    1, 10, 3, 0.5, 0.2, 1.0, 1.0, Outcome.REFUSED, "QUEUE_FULL", 0, None, None, 1.1, None, None, (), ()
)
SOON = distribution([0.001])
assert SOON is not None
REPORT = RunReport(
    settings=RunSettings("grpc://host:1", "chat", 2.5, 10.0, seed=3),
    target=TargetInfo("grpc", "tiny", 100, None, "token ids", {"policy": "fcfs"}),
    provenance=provenance(),
    problems=(),
    score=score([DONE, REFUSED], 10.0),
    lateness_s=SOON,
    clients=(ClientUse(2, 3, 10.0, 1.0, SOON, None),),
    timeline=(LoadSample(0.5, 1, 2, 3, 4, 10, 60.0, 40.0, 12.5, "fcfs"),),
    records=(DONE, REFUSED),
)


def printed(report: RunReport) -> str:
    console = Console(width=120, file=None)
    with console.capture() as said:
        console.print(table(report))
    return said.get()


def test_a_report_with_gaps_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    REPORT.save(path, gaps=True)
    assert read_report(path) == REPORT


def test_without_gaps_each_request_keeps_its_latencies(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    REPORT.save(path)
    back = read_report(path)
    assert back.score == REPORT.score
    assert back.records[0].gaps_s == ()
    assert back.records[0].tpot_s == DONE.tpot_s
    assert back.records[0].largest_gap_s == 0.15


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "other"}, "not a report"),
        ({"format": 99}, "not a report"),
        ({"score": {}}, "score: sent is missing"),
        ({"settings": 5}, "settings: not of the expected type"),
        ({"problems": [1]}, r"problems\[0\]: not of the expected type"),
        ({"records": [{"index": "one"}]}, r"records\[0\]"),
    ],
)
def test_another_file_is_no_report(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    REPORT.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=said):
        read_report(path)


def test_files_that_are_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read"):
        read_report(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(InputError, match="not JSON"):
        read_report(tmp_path / "text.json")


def test_the_table_has_counts_attainment_latencies_and_reasons() -> None:
    said = printed(REPORT)
    assert "2 sent, 1 done, 1 refused, 0 failed" in said
    assert "tight 0.0%" not in said
    assert "tight 50.0%" in said
    assert "1 x QUEUE_FULL" in said
    assert "INVALID" not in said
    ttft = next(line.split() for line in said.splitlines() if line.startswith("TTFT"))
    assert ttft == ["TTFT", *["500.00"] * 4]
    queue = next(line.split() for line in said.splitlines() if line.startswith("queue"))
    assert queue == ["queue", *["-"] * 4]


def test_an_invalid_run_says_so_first() -> None:
    said = printed(replace(REPORT, problems=("the client fell behind",)))
    assert said.splitlines()[0].startswith("INVALID")
    assert "the client fell behind" in said.splitlines()[1]


def test_gpus_are_what_nvidia_smi_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == ()
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB, 570.10'\n")
    tool.chmod(0o755)
    assert gpus() == ("NVIDIA H200, 143771 MiB, driver 570.10",)
    tool.write_text("#!/bin/sh\necho 'no devices were found'; exit 6\n")
    assert gpus() == ()


@pytest.mark.parametrize(
    ("told", "commit", "changed"), [("4efb170", "4efb170", False), ("4efb170-dirty", "4efb170", True)]
)
def test_a_copy_without_its_repository_is_told_its_commit(
    told: str, commit: str, changed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semipd.bench.provenance.ROOT", tmp_path)
    monkeypatch.setenv("SEMIPD_COMMIT", told)
    found = provenance()
    assert (found.commit, found.uncommitted_changes) == (commit, changed)
