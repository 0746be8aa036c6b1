"""Scoring, against cases worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from semipd.bench.scoring.records import Outcome, RequestRecord
from semipd.bench.scoring.score import Distribution, distribution, percentile, score

# sent at 1.0, tokens at 1.5, 1.6, 1.9: TTFT 0.5, TPOT 0.2, end to end 0.9
RECORD = RequestRecord(
    index=0,
    prompt_len=10,
    output_len=3,
    ttft_slo_s=0.5,
    tpot_slo_s=0.2,
    scheduled_s=0.999,
    sent_s=1.0,
    outcome=Outcome.DONE,
    reason="",
    tokens=3,
    first_s=1.5,
    last_s=1.9,
    done_s=1.95,
    queue_s=0.1,
    largest_gap_s=0.3,
    gaps_s=(0.1, 0.3),
    counts=(),
)
REFUSED = replace(
    RECORD,
    outcome=Outcome.REFUSED,
    reason="QUEUE_FULL",
    tokens=0,
    first_s=None,
    last_s=None,
    queue_s=None,
    largest_gap_s=None,
    gaps_s=(),
)
FAILED = replace(RECORD, outcome=Outcome.FAILED, reason="INTERNAL", tokens=2, last_s=1.6, gaps_s=(0.1,))


def test_the_latencies_of_one_request() -> None:
    assert RECORD.ttft_s == pytest.approx(0.5)
    assert RECORD.tpot_s == pytest.approx(0.2)
    assert RECORD.end_to_end_s == pytest.approx(0.9)
    assert RECORD.token_times() == [(1.5, 1), (pytest.approx(1.6), 1), (pytest.approx(1.9), 1)]


def test_a_request_counts_when_both_latencies_are_inside() -> None:
    asked = replace(RECORD, ttft_slo_s=0.51, tpot_slo_s=0.21)
    assert asked.met()
    assert not replace(asked, ttft_slo_s=0.49).met()
    assert not replace(asked, tpot_slo_s=0.19).met()


def test_the_loose_slo_is_ten_over_seven_and_a_half_of_the_tight() -> None:
    inside = score([replace(RECORD, ttft_slo_s=0.376, tpot_slo_s=0.151)], 10.0)
    assert (inside.attainment, inside.attainment_loose) == (0.0, 1.0)
    assert score([replace(RECORD, ttft_slo_s=0.374, tpot_slo_s=0.151)], 10.0).attainment_loose == 0.0


def test_one_token_has_no_tpot_to_miss() -> None:
    one = replace(RECORD, output_len=1, tokens=1, last_s=1.5, gaps_s=(), largest_gap_s=None, tpot_slo_s=1e-9)
    assert one.tpot_s is None
    assert score([replace(one, ttft_slo_s=0.51)], 10.0).attainment == 1.0


def test_several_tokens_in_a_message_share_its_time() -> None:
    # 4 tokens in 2 messages: TPOT is 0.3 / 3, the reader waited once
    pair = replace(RECORD, tokens=4, output_len=4, last_s=1.8, gaps_s=(0.3,), counts=(1, 3))
    scored = score([pair], 10.0)
    assert pair.tpot_s == pytest.approx(0.1)
    assert scored.itl_s is not None
    assert (scored.itl_s.count, scored.itl_s.max) == (1, 0.3)
    assert scored.output_tokens_per_s == pytest.approx(0.4)


def test_refused_and_failed_requests_are_misses_and_give_no_latencies() -> None:
    good = replace(RECORD, ttft_slo_s=1.0, tpot_slo_s=1.0)
    scored = score([good, good, REFUSED, FAILED], 10.0)
    assert (scored.sent, scored.done, scored.refused, scored.failed) == (4, 2, 1, 1)
    assert scored.attainment == scored.attainment_loose == scored.ttft_attainment == scored.tpot_attainment == 0.5
    assert scored.good_requests_per_s == pytest.approx(0.2)
    assert scored.reasons == {"QUEUE_FULL": 1, "INTERNAL": 1}
    assert scored.ttft_s is not None
    assert scored.ttft_s.count == 2
    assert scored.queue_s is not None
    assert scored.queue_s.mean == pytest.approx(0.1)


def test_throughput_is_of_the_window_in_which_requests_arrive() -> None:
    # of the three tokens, two come by 1.7 s, and so does the first, with which the prompt counts
    scored = score([RECORD, REFUSED], 1.7)
    assert scored.output_tokens_per_s == pytest.approx(2 / 1.7)
    assert scored.total_tokens_per_s == pytest.approx(12 / 1.7)
    assert score([RECORD], 1.4).total_tokens_per_s == 0.0


def test_nothing_done_has_no_distributions() -> None:
    scored = score([REFUSED], 10.0)
    assert scored.ttft_s is scored.itl_s is scored.queue_s is None
    assert scored.attainment == 0.0


def test_percentiles_are_nearest_rank() -> None:
    hundred = [float(n) for n in range(1, 101)]
    assert distribution(hundred) == Distribution(100, 50.5, 50.0, 90.0, 99.0, 100.0)
    assert percentile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert percentile([1.0, 2.0], 0.99) == 2.0
    assert percentile([4.0], 0.5) == 4.0
    assert distribution([]) is None
