"""The goodput search over whole runs: what is counted, kept, refused and said."""

from __future__ import annotations

from pathlib import Path

import pytest

from semipd.bench.errors import InputError, RunFailed, Unreachable
from semipd.bench.runs.goodput import Goodput, measure_goodput, probe_line, read_goodput, said
from semipd.bench.runs.search import Probe, SearchEnding, SearchRun, SearchSettings
from semipd.bench.scoring.report import RunReport
from semipd.bench.settings import RunSettings
from support.reports import SETTINGS, report

SEARCH = SearchSettings(start=2.0, tolerance=0.1, repeats=2)


class Server:
    """Up to `tight` requests/s nearly all are inside the tight SLO, up to `loose` inside the loose one."""

    def __init__(self, tight: float = 5.0, loose: float = 9.0, requests: int = 100) -> None:
        self.tight, self.loose, self.requests = tight, loose, requests
        self.made: list[RunSettings] = []

    def __call__(self, settings: RunSettings) -> RunReport:
        self.made.append(settings)
        inside = int(self.requests * 0.95)
        if settings.rate <= self.tight:
            return report(settings, met=inside, total=self.requests)
        if settings.rate <= self.loose:
            return report(settings, met=self.requests // 2, loose=inside - self.requests // 2, total=self.requests)
        return report(settings, met=self.requests // 2, total=self.requests)


def search(server: Server, *, loose: bool = False, settings: SearchSettings = SEARCH) -> Goodput:
    return measure_goodput(SETTINGS, settings, loose=loose, runner=server, tell=lambda probe: None)


@pytest.mark.parametrize(("loose", "goodput"), [(False, 5.0), (True, 9.0)])
def test_the_goodput_of_the_slo_that_is_asked_for(loose: bool, goodput: float) -> None:
    found = search(Server(), loose=loose).found
    assert found.passed is not None
    assert found.failed is not None
    assert found.passed <= goodput < found.failed <= 1.1 * found.passed


def test_every_run_is_kept_with_its_rate_and_a_seed_of_its_own(tmp_path: Path) -> None:
    server = Server()
    result = search(server)
    result.save(tmp_path / "goodput.json")
    kept = read_goodput(tmp_path / "goodput.json")
    assert [run.settings.seed for run in kept.runs] == list(range(len(server.made)))
    assert [run.settings.rate for run in kept.runs] == pytest.approx([made.rate for made in server.made])
    assert {run.settings.trace for run in kept.runs} == {"chat"}
    assert kept.found.ending is SearchEnding.FOUND
    assert kept.found.passed == pytest.approx(result.found.passed)
    assert [probe.runs for probe in kept.found.probes] == [probe.runs for probe in result.found.probes]
    assert kept.curve().points[0].attainment == pytest.approx(0.95)


def test_the_curve_pools_all_runs_of_a_rate() -> None:
    result = search(Server())
    points = result.curve().points
    assert [point.rate for point in points] == [probe.rate for probe in result.found.probes]
    for point, probe in zip(points, result.found.probes, strict=True):
        assert point.attainment == pytest.approx(probe.attainment)
        assert point.ttft_s is not None
        assert point.ttft_s.count == probe.total


def test_a_run_whose_client_fell_behind_ends_the_search_without_a_result() -> None:
    def server(settings: RunSettings) -> RunReport:
        problems = ("the client fell behind",) if settings.rate > 3 else ()
        return report(settings, met=100, problems=problems)

    with pytest.raises(RunFailed, match=r"4 requests/s with seed 2 is invalid.*the client fell behind"):
        measure_goodput(SETTINGS, SEARCH, loose=False, runner=server, tell=lambda probe: None)


def test_a_target_that_goes_away_ends_the_search() -> None:
    def server(settings: RunSettings) -> RunReport:
        raise Unreachable("nobody answers there")

    with pytest.raises(Unreachable):
        measure_goodput(SETTINGS, SEARCH, loose=False, runner=server, tell=lambda probe: None)


def test_each_rate_is_told_as_soon_as_it_is_measured() -> None:
    told: list[float] = []
    measure_goodput(SETTINGS, SEARCH, loose=False, runner=Server(), tell=lambda probe: told.append(probe.rate))
    assert told[:3] == [2.0, 4.0, 8.0]


def test_the_result_is_said_with_its_interval_and_confidence() -> None:
    text = said(search(Server()))
    assert "goodput (tight SLO, 90% of requests): " in text
    assert "95 % confidence" in text
    assert "Fewer than" not in text


def test_a_result_that_rests_on_few_requests_says_so() -> None:
    assert "Fewer than 100 requests" in said(search(Server(requests=20)))


def test_results_without_an_interval_are_told_apart() -> None:
    lowest = SearchSettings(start=2.0, lowest=1.0)
    assert "no goodput: not even 1 requests/s" in said(search(Server(tight=0.1), settings=lowest))
    highest = SearchSettings(start=2.0, highest=4.0)
    assert "above 4 requests/s" in said(search(Server(), settings=highest))
    few = SearchSettings(start=2.0, repeats=2, most_runs=4)
    assert "not found within 4 runs" in said(search(Server(), settings=few))


def test_a_line_for_each_rate_names_the_runs_and_the_verdict() -> None:
    line = probe_line(Probe(4.0, (SearchRun(0, 45, 50), SearchRun(1, 48, 50))), 0.9)
    assert "4 requests/s:  93.0% inside their SLO" in line
    assert "of 100 (45/50, 48/50): passed" in line


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    report().save(tmp_path / "run.json")
    with pytest.raises(InputError, match="not a result of `semipd bench goodput`"):
        read_goodput(tmp_path / "run.json")
