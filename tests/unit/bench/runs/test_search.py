"""The goodput search against servers whose goodput is known."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from semipd.bench.runs.search import Probe, Search, SearchEnding, SearchRun, SearchSettings, dispersion, fitted, wilson


class LogisticServer:
    """Attainment falls from 1 to 0 around a rate; its 90 % is at `goodput` exactly. Requests are independent."""

    def __init__(self, goodput: float, requests: int, steepness: float = 12.0) -> None:
        self.goodput = goodput
        self.requests = requests
        self.steepness = steepness
        self.asked: list[tuple[float, int]] = []

    def attainment(self, rate: float) -> float:
        return 1 / (1 + math.exp(self.steepness * math.log(rate / self.goodput) - math.log(9)))

    def __call__(self, rate: float, seed: int) -> tuple[int, int]:
        self.asked.append((rate, seed))
        drawn = random.Random(seed)
        return sum(drawn.random() < self.attainment(rate) for _ in range(self.requests)), self.requests


def queue_server(rate: float, seed: int) -> tuple[int, int]:
    """M/M/1, 10 requests/s, first come first served; the SLO is 0.5 s from arrival to end, over 4000 requests.

    The time in the system is exponential with rate 10 - R, so 90 % are inside at R = 10 - ln(10)/0.5 = 5.395.
    """
    drawn = random.Random(seed)
    now = free = 0.0
    met = 0
    for _ in range(4000):
        now += drawn.expovariate(rate)
        free = max(now, free) + drawn.expovariate(10.0)
        met += free - now <= 0.5
    return met, 4000


@pytest.mark.parametrize("goodput", [0.4, 7.3, 180.0])
def test_finds_a_known_goodput_from_far_away(goodput: float) -> None:
    server = LogisticServer(goodput, requests=2000)
    found = Search(SearchSettings(start=5.0, tolerance=0.05), server).find()
    assert found.ending is SearchEnding.FOUND
    assert found.passed is not None
    assert found.failed is not None
    assert found.passed < found.failed <= found.passed * 1.05
    assert goodput * 0.96 < found.passed < goodput * 1.04


@pytest.mark.parametrize("first_seed", [0, 100, 200])
def test_finds_the_goodput_of_a_queue_within_its_confidence(first_seed: int) -> None:
    goodput = 10 - math.log(10) / 0.5
    found = Search(SearchSettings(start=1.0, tolerance=0.05, first_seed=first_seed), queue_server).find()
    assert found.passed == pytest.approx(goodput, rel=0.1)
    assert found.likely is not None
    low, high = found.likely
    assert low < goodput < high < 1.15 * low


def test_noise_that_breaks_monotony_does_not_lead_the_search_astray() -> None:
    """A rate's attainment is off by some percent in a run of 40 requests; the answer still is near, for any seed."""
    broken = 0
    for seed in range(40):
        server = LogisticServer(8.0, requests=40)
        found = Search(SearchSettings(start=2.0, tolerance=0.05, first_seed=1000 * seed), server).find()
        assert found.ending is SearchEnding.FOUND
        assert found.passed == pytest.approx(8.0, rel=0.13)
        broken += any(left.attainment < right.attainment for left, right in pairwise(found.probes))
    assert broken > 0


def test_a_lucky_end_is_found_out_by_the_second_round() -> None:
    """The first round at 4 requests/s passes by luck. Without measuring the ends again 4 would be the answer."""
    rounds: dict[float, int] = {}

    def server(rate: float, seed: int) -> tuple[int, int]:
        rounds[rate] = rounds.get(rate, 0) + 1
        lucky = rate == 4.0 and rounds[rate] == 1
        return (100 if lucky or rate <= 3.0 else 60), 100

    found = Search(SearchSettings(start=4.0, tolerance=0.1, repeats=1), server).find()
    assert found.ending is SearchEnding.FOUND
    assert found.passed is not None
    assert found.failed is not None
    assert found.passed <= 3.0 < found.failed


def test_every_run_has_its_own_seed_and_is_kept() -> None:
    server = LogisticServer(6.0, requests=200)
    found = Search(SearchSettings(start=1.0, first_seed=70), server).find()
    seeds = [seed for _, seed in server.asked]
    assert seeds == list(range(70, 70 + len(seeds)))
    assert sorted(run.seed for probe in found.probes for run in probe.runs) == seeds
    assert [probe.rate for probe in found.probes] == sorted({rate for rate, _ in server.asked})


def test_the_ends_are_measured_twice_and_every_rate_in_whole_rounds() -> None:
    found = Search(SearchSettings(start=1.0, repeats=2), LogisticServer(6.0, requests=500)).find()
    runs = {probe.rate: len(probe.runs) for probe in found.probes}
    assert found.passed is not None
    assert found.failed is not None
    assert runs[found.passed] == runs[found.failed] == 4
    assert set(runs.values()) <= {2, 4}


def test_a_server_that_always_misses_has_no_goodput() -> None:
    found = Search(SearchSettings(start=4.0, lowest=0.5), lambda rate, seed: (0, 50)).find()
    assert (found.ending, found.passed, found.failed) == (SearchEnding.NONE_PASSED, None, 0.5)


def test_a_server_that_never_misses_is_said_to_have_no_upper_end() -> None:
    found = Search(SearchSettings(start=4.0, highest=30.0), lambda rate, seed: (50, 50)).find()
    assert (found.ending, found.passed, found.failed) == (SearchEnding.NONE_FAILED, 30.0, None)


def test_runs_are_bounded_and_the_result_says_that_they_ran_out() -> None:
    server = LogisticServer(900.0, requests=10)
    found = Search(SearchSettings(start=1.0, repeats=2, most_runs=7), server).find()
    assert found.ending is SearchEnding.OUT_OF_RUNS
    assert len(server.asked) == 6


def test_an_error_of_the_measurement_passes_through_and_what_was_measured_stays() -> None:
    def server(rate: float, seed: int) -> tuple[int, int]:
        if rate > 3:
            raise RuntimeError("the client fell behind")
        return 10, 10

    search = Search(SearchSettings(start=1.0), server)
    with pytest.raises(RuntimeError, match="fell behind"):
        search.find()
    assert [probe.rate for probe in search.probes] == [1.0, 2.0]


def test_a_run_without_requests_is_refused() -> None:
    with pytest.raises(ValueError, match="0 of 0"):
        Search(SearchSettings(start=1.0), lambda rate, seed: (0, 0)).find()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"start": 0.0}, "rates"),
        ({"start": math.inf}, "rates"),
        ({"start": math.nan}, "rates"),
        ({"start": 1.0, "target": 1.0}, "target"),
        ({"start": 1.0, "tolerance": 0.0}, "tolerance"),
        ({"start": 1.0, "repeats": 0}, "repeats"),
        ({"start": 1.0, "growth": 1.0}, "growth"),
    ],
)
def test_settings_that_cannot_be_searched_are_refused(changed: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchSettings(**changed)  # type: ignore[arg-type]


def test_the_fitted_curve_never_rises_and_keeps_every_request() -> None:
    drawn = random.Random(3)
    probes = [Probe(float(i), (SearchRun(0, drawn.randint(0, 100), 100),)) for i in range(30)]
    curve = fitted(probes)
    assert all(left >= right for left, right in pairwise(curve))
    assert sum(curve) * 100 == pytest.approx(sum(probe.met for probe in probes))


def test_violators_are_pooled_by_their_number_of_requests() -> None:
    probes = [
        Probe(1.0, (SearchRun(0, 30, 30),)),
        Probe(2.0, (SearchRun(0, 20, 40),)),
        Probe(3.0, (SearchRun(0, 10, 10),)),
    ]
    assert fitted(probes) == pytest.approx([1.0, 0.6, 0.6])


def test_wilson_is_the_textbook_interval() -> None:
    assert wilson(90, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert wilson(10, 10)[1] == 1.0
    assert wilson(0, 10)[0] == 0.0


def test_runs_that_disagree_widen_the_interval() -> None:
    agreeing = Probe(1.0, (SearchRun(0, 90, 100), SearchRun(1, 90, 100), SearchRun(2, 90, 100)))
    disagreeing = Probe(1.0, (SearchRun(0, 99, 100), SearchRun(1, 72, 100), SearchRun(2, 99, 100)))
    assert agreeing.attainment == disagreeing.attainment
    assert dispersion(agreeing.runs) == 1.0
    assert dispersion(disagreeing.runs) > 10
    low, high = disagreeing.confidence
    assert low < agreeing.confidence[0]
    assert high > agreeing.confidence[1]
