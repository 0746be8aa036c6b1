"""TPOT, and when latencies are inside an SLO."""

from __future__ import annotations

import pytest

from semipd.core.request import Slo, mean_tpot_s


@pytest.mark.parametrize(
    ("slo", "ttft", "tpot", "inside"),
    [
        (Slo(0.5, 0.1), 0.5, 0.1, True),
        (Slo(0.5, 0.1), 0.51, 0.1, False),
        (Slo(0.5, 0.1), 0.5, 0.11, False),
        (Slo(None, 0.1), 99.0, 0.1, True),
        (Slo(0.5, 0.1), 0.5, None, True),
    ],
)
def test_an_slo_is_met_when_all_that_it_names_is(slo: Slo, ttft: float, tpot: float | None, inside: bool) -> None:
    assert slo.met(ttft, tpot) is inside


def test_a_looser_slo_is_met_by_more() -> None:
    assert not Slo(0.1, 0.02).met(0.11, 0.021)
    assert Slo(0.1, 0.02).met(0.11, 0.021, factor=1.2)
    assert not Slo(0.1, 0.02).met(0.11, 0.025, factor=1.2)


def test_tpot_is_of_the_tokens_after_the_first() -> None:
    assert mean_tpot_s(0.3, 4) == pytest.approx(0.1)
    assert mean_tpot_s(0.0, 1) is None
    assert mean_tpot_s(0.0, 0) is None
