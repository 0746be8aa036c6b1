"""Tests what must hold of the profile that ships, whichever figures it was recorded with."""

from __future__ import annotations

from itertools import pairwise

import pytest

from semipd.bench.arrivals import TraceArrival
from semipd.bench.traces import TraceEntry
from semipd.core.partition import Mode
from semipd.policies.registry import make_policy
from semipd.profiles.profile import SHIPPED, Profile, load_profile
from semipd.sim.execution_times import ProfileTimes, up_to
from semipd.sim.replay import replay
from semipd.sim.run import SimConfig


@pytest.fixture(scope="module")
def shipped() -> Profile:
    return load_profile(SHIPPED)


@pytest.fixture(scope="module")
def times(shipped: Profile) -> ProfileTimes:
    return ProfileTimes(shipped)


def test_it_was_recorded_whole_at_a_known_commit_on_the_gpu_that_it_is_of(shipped: Profile) -> None:
    source = shipped.source
    assert source.recorded
    assert "Left out" not in source.how
    assert source.made is not None
    assert source.made.command.startswith("semipd profile")
    assert source.made.commit
    assert not source.made.uncommitted_changes
    assert {gpu.split(",")[0] for gpu in source.made.gpus} == {shipped.gpu.name}


def test_every_decode_step_and_whole_prompt_is_read_off_again(shipped: Profile, times: ProfileTimes) -> None:
    for table in shipped.decode:
        for p in table.points:
            got = times.decode_s(p.rows, p.rows * p.context, table.sms, table.other_sms)
            assert got * 1000 == pytest.approx(p.ms, rel=1e-6), (table.sms, table.other_sms, p)
    for batch in shipped.prefill:
        for q in batch.points:
            if q.start == 0:
                got = times.prefill_s(q.tokens, q.tokens**2 / 2, batch.sms, batch.other_sms)
                near = 1e-6 if up_to(shipped.buckets.prefill, q.tokens) == q.tokens else 0.02  # padded as another point
                assert got * 1000 == pytest.approx(q.ms, rel=near), (batch.sms, batch.other_sms, q)


def test_one_price_of_a_pair_is_near_every_long_chunk_and_never_far_above_a_short_one(
    shipped: Profile, times: ProfileTimes
) -> None:
    """A short chunk after much context has no captured graph, so its launches take longer than what it computes."""
    later = [(batch, q) for batch in shipped.prefill for q in batch.points if q.start]
    assert later
    for batch, q in later:
        got = 1000 * times.prefill_s(q.tokens, q.tokens * (q.start + q.tokens / 2), batch.sms, batch.other_sms)
        assert got < 1.1 * q.ms, q
        if q.tokens >= 512:
            assert got == pytest.approx(q.ms, rel=0.1), q


def test_mixed_batches_are_there_and_every_one_is_read_off_again(shipped: Profile, times: ProfileTimes) -> None:
    assert Mode.MIXED in SimConfig("chunked", {}, shipped).settings().limits.modes
    for p in shipped.mixed:
        pairs = p.tokens * (p.start + p.tokens / 2)
        got = times.mixed_s(p.rows, p.rows * p.context, p.tokens, pairs, shipped.gpu.sms, 0)
        # Points that differ in context or start alone share a ratio.
        assert got * 1000 == pytest.approx(p.ms, rel=0.02), p


def test_policies_know_what_steps_are_padded_to(shipped: Profile, times: ProfileTimes) -> None:
    sizes = SimConfig("adaptive", {}, shipped).settings().limits.decode_capture_sizes
    assert sizes[-1] == 512
    sms = shipped.gpu.sms
    for size, larger in pairwise(sizes):
        more, most = (times.decode_s(rows, 400 * size, sms, 0) for rows in (size + 1, larger))
        assert more == most


def test_a_request_alone_takes_what_was_measured_through_grpc(shipped: Profile, times: ProfileTimes) -> None:
    """One H200 answered 251 tokens alone in 11.9 ms and went on at 4.79 ms a token (benchmarks/results/h200_alone)."""
    one = TraceArrival(0, 0.0, TraceEntry(251, 101, 1.0, 0.1))
    (sequence,) = replay(make_policy("fcfs", {}), [one], SimConfig("fcfs", {}, shipped).settings(), times).sequences
    assert sequence.first_token_s is not None
    assert sequence.end_s is not None
    assert sequence.first_token_s + shipped.overheads.deliver_s == pytest.approx(0.0115, abs=0.0008)
    assert (sequence.end_s - sequence.first_token_s) / 100 == pytest.approx(0.0048, rel=0.05)
