"""A run whose client was the bottleneck is marked, and so is one that measured errors."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from semipd.bench.scoring.records import UNFINISHED, Outcome, RequestRecord
from semipd.bench.scoring.score import Distribution
from semipd.bench.scoring.validity import ClientUse, problems

SOON = Distribution(100, 0.001, 0.001, 0.002, 0.019, 0.5)
LATE = replace(SOON, p99=0.021)
USE = ClientUse(requests=100, tokens=1000, wall_s=10.0, cpu_s=8.9, lateness_s=SOON, loop_lag_s=SOON)
DONE = RequestRecord(0, 1, 1, 1.0, 1.0, 0.0, 0.0, Outcome.DONE, "", 1, 0.1, 0.1, 0.1, None, None, (), ())
ERROR = replace(DONE, outcome=Outcome.FAILED, reason="INTERNAL")


def test_a_client_that_kept_up_is_valid() -> None:
    assert problems([DONE], SOON, [USE, USE]) == ()


@pytest.mark.parametrize(
    ("records", "lateness", "use", "said"),
    [
        ([DONE], LATE, USE, "fell behind.* 21 ms late"),
        ([DONE], SOON, replace(USE, cpu_s=9.1), "91% busy"),
        ([DONE], SOON, replace(USE, loop_lag_s=LATE), "stamped tokens up to 21 ms late"),
        ([DONE, ERROR, ERROR], SOON, USE, "2 of 3 requests ended in errors"),
    ],
)
def test_what_makes_a_run_invalid(
    records: list[RequestRecord], lateness: Distribution, use: ClientUse, said: str
) -> None:
    (problem,) = problems(records, lateness, [USE, use])
    assert re.search(said, problem)


def test_an_overloaded_server_makes_no_run_invalid() -> None:
    late = replace(DONE, outcome=Outcome.FAILED, reason=UNFINISHED)
    refused = replace(DONE, outcome=Outcome.REFUSED, reason="QUEUE_FULL")
    assert problems([DONE, late, late, refused, refused], SOON, [USE]) == ()
