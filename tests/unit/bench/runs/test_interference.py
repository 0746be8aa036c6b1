"""Gaps between tokens are told apart by halves, and nothing is reported that was not measured."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from semipd.bench.errors import InputError, RunFailed
from semipd.bench.runs.interference import (
    InterferenceSettings,
    batch_chains,
    first_outputs,
    gaps_within,
    interference,
    prompt_arrivals,
    turns,
    windows,
)
from semipd.bench.scoring.records import Outcome, RequestRecord

SETTINGS = InterferenceSettings("grpc://a:1", decoding=2, output_tokens=1000, duration_s=2.0, settle_s=1.0)
ALONE, LOADED = windows(SETTINGS)
FIRST_PROMPT = prompt_arrivals(SETTINGS)[0].index


def sequence(
    *times: float, index: int = 0, sent_s: float = 0.0, outcome: Outcome = Outcome.DONE, reason: str = ""
) -> RequestRecord:
    gaps = tuple(after - before for before, after in pairwise(times))
    return RequestRecord(
        index=index,
        prompt_len=10,
        output_len=len(times),
        ttft_slo_s=1.0,
        tpot_slo_s=1.0,
        scheduled_s=sent_s,
        sent_s=sent_s,
        outcome=outcome,
        reason=reason,
        tokens=len(times),
        first_s=times[0] if times else None,
        last_s=times[-1] if times else None,
        done_s=times[-1] if times else sent_s,
        queue_s=None,
        largest_gap_s=max(gaps, default=None),
        gaps_s=gaps,
        counts=(),
    )


BATCH = [
    sequence(*[0.5 + 0.125 * i for i in range(20)], *[3.0 + 0.5 * i for i in range(5)]),
    sequence(*[0.5 + 0.125 * i for i in range(20)], *[3.0 + 0.5 * i for i in range(5)]),
]
PROMPT = sequence(3.4, 3.5, index=FIRST_PROMPT, sent_s=3.0)


def test_a_gap_belongs_to_the_half_in_which_it_ends() -> None:
    record = sequence(0.5, 1.5, 2.0, 3.0, 5.5)
    assert gaps_within([record], ALONE) == pytest.approx((1.0, 0.5))
    assert gaps_within([record], LOADED) == pytest.approx((1.0,))


def test_the_gap_before_the_first_token_is_none_of_a_reader() -> None:
    assert gaps_within([sequence(2.0, sent_s=0.0)], ALONE) == ()


def test_both_halves_are_scored_with_their_ratio_and_what_the_prompts_waited() -> None:
    found = interference([*BATCH, PROMPT, replace(PROMPT, outcome=Outcome.REFUSED)], SETTINGS)
    assert found.alone.gaps_s.p50 == pytest.approx(0.125)
    assert found.with_prompts.gaps_s.p50 == pytest.approx(0.5)
    assert found.p50_ratio == pytest.approx(4.0)
    assert found.p99_ratio == pytest.approx(4.0)
    assert found.alone.sequences == pytest.approx(2.0)
    assert found.alone.tokens_per_s == pytest.approx(16.0)
    assert found.steady
    assert (found.prompts.sent, found.prompts.done) == (2, 1)
    assert found.prompts.ttft_s is not None
    assert found.prompts.ttft_s.p50 == pytest.approx(0.4)


def test_a_batch_that_shrinks_under_prompts_is_not_called_steady() -> None:
    leaving = sequence(*[0.5 + 0.125 * i for i in range(22)])
    assert not interference([BATCH[0], leaving, PROMPT], SETTINGS).steady


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.FAILED])
def test_a_sequence_that_did_not_end_well_is_no_steady_batch(outcome: Outcome) -> None:
    lost = sequence(0.5, 2.0, outcome=outcome, reason="QUEUE_FULL")
    with pytest.raises(RunFailed, match=f"{outcome.value}: QUEUE_FULL"):
        interference([*BATCH, lost, PROMPT], SETTINGS)


def test_a_sequence_cut_off_after_the_measurement_is_no_failure() -> None:
    cut = sequence(0.5, 2.0, 5.25, outcome=Outcome.FAILED, reason="not finished when the run ended")
    assert interference([*BATCH, cut, PROMPT], SETTINGS).with_prompts.sequences > 2


def test_without_tokens_in_a_half_there_is_no_report() -> None:
    silent = sequence(*[0.5 + 0.125 * i for i in range(20)], 2.99)
    with pytest.raises(RunFailed, match="with prompts: no tokens"):
        interference([silent, silent, PROMPT], SETTINGS)


def test_a_batch_that_was_not_full_before_the_prompts_is_no_report() -> None:
    late = sequence(2.0, 2.5, 3.0, 4.0, 5.0)
    with pytest.raises(RunFailed, match=r"only 1\.5 of 2 sequences"):
        interference([BATCH[0], late, PROMPT], SETTINGS)


def test_sequences_that_ran_out_are_no_steady_batch() -> None:
    last = sequence(4.0, 4.5, index=2 * turns(SETTINGS) - 1)
    with pytest.raises(RunFailed, match="too short"):
        interference([*BATCH, last, PROMPT], SETTINGS)


def test_without_an_answered_prompt_there_is_no_report() -> None:
    refused = sequence(index=FIRST_PROMPT, sent_s=3.0, outcome=Outcome.REFUSED, reason="PROMPT_TOO_LONG")
    with pytest.raises(RunFailed, match="PROMPT_TOO_LONG"):
        interference([*BATCH, refused], SETTINGS)


def test_the_first_sequences_end_one_after_another_and_the_same_for_a_seed() -> None:
    settings = InterferenceSettings("grpc://a:1", decoding=8, output_tokens=80, seed=3)
    lengths = first_outputs(settings)
    assert sorted(lengths) == [10, 20, 30, 40, 50, 60, 70, 80]
    assert lengths == first_outputs(settings) != first_outputs(replace(settings, seed=4))
    assert min(first_outputs(replace(settings, decoding=200))) == 2


def test_prompts_arrive_evenly_over_the_second_half_only() -> None:
    settings = InterferenceSettings("grpc://a:1", prompt_rate=2.0, duration_s=2.25, settle_s=1.0)
    prompts = prompt_arrivals(settings)
    assert [prompt.at_s for prompt in prompts] == pytest.approx([3.25, 3.75, 4.25, 4.75, 5.25])
    assert {(p.entry.prompt_len, p.entry.output_len) for p in prompts} == {(4000, 16)}


def test_each_place_has_sequences_for_the_whole_run_and_every_request_an_index_of_its_own() -> None:
    chains = batch_chains(SETTINGS)
    assert [len(chain) for chain in chains] == [turns(SETTINGS)] * 2
    assert turns(SETTINGS) * 1000 * 0.002 > LOADED.end_s
    assert sorted(chain[0].entry.output_len for chain in chains) == [500, 1000]
    assert {a.entry.output_len for chain in chains for a in chain[1:]} == {1000}
    indexes = [a.index for chain in chains for a in chain] + [a.index for a in prompt_arrivals(SETTINGS)]
    assert sorted(indexes) == list(range(len(indexes)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"decoding": 0}, "decoding"),
        ({"output_tokens": 1}, "output_tokens"),
        ({"prompt_rate": 0.0}, "prompt_rate"),
        ({"duration_s": float("nan")}, "duration_s"),
        ({"prompt_rate": 0.1, "duration_s": 5.0}, "no prompt arrives"),
    ],
)
def test_settings_that_measure_nothing_are_refused(changed: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        InterferenceSettings("grpc://a:1", **changed)  # type: ignore[arg-type]
