"""Mixed batches in simulated time. A step takes 10 ms where there are rows, and 1 ms for each token of a prompt."""

from __future__ import annotations

from dataclasses import replace

import pytest
from unit.sim.rig import Flat, Plain, due, run, settings
from unit.sim.small import small_profile

from semipd.bench.settings import RunSettings
from semipd.core.partition import FULL, Mode, Phase
from semipd.core.plan import Plan
from semipd.core.snapshot import Snapshot, Step
from semipd.profiles.profile import MixedPoint, Overheads, Profile
from semipd.sim.execution_times import ProfileTimes
from semipd.sim.replay import Replayed
from semipd.sim.run import SimConfig, simulate
from semipd.sim.step import step_sizes

THREE = ((0.0, 100, 100), (0.205, 100, 1), (0.206, 100, 1), (0.207, 100, 1))
"""The first decodes when three others come, a batch each."""


def firsts(done: Replayed) -> list[float | None]:
    return [None if sequence.first_token_s is None else round(sequence.first_token_s, 6) for sequence in done.sequences]


def mixed(chunk: int = 100) -> Plain:
    return Plain(mode=Mode.MIXED, chunk=chunk)


def prompts_seen(policy: Plain) -> list[Step]:
    return [s for s in policy.seen[-1].observed.steps if s.phase is Phase.PREFILL]


# --- cases that can be computed in the head ---------------------------------------------------------------------------


def test_prompts_ride_on_decode_steps_and_all_of_it_is_on_the_whole_device() -> None:
    times = Flat()
    done = run(mixed(), due(*THREE), times)
    # At 0.205 two steps are on the device, until 0.22. The first prompt is in the one after them, with the row; the
    # second in the next; the third is given out at 0.33, when the first is answered, and in time for the one after.
    assert firsts(done) == [0.1, 0.33, 0.44, 0.55]
    assert {asked for asked in times.asked if asked[0] != "decode"} == {("mixed", 128, 0)}
    # 12 steps by 0.22, three with prompts, and the rest.
    assert done.sequences[0].end_s == pytest.approx(0.55 + (99 - 15) * 0.01)


def test_a_batch_that_comes_after_the_next_step_was_launched_is_in_the_one_behind_it() -> None:
    overheads = Overheads(0.0, turnaround_s=0.002, prepare_s=0.0, deliver_s=0.0, handover_s=0.0)
    done = run(mixed(), due(*THREE), server=settings(overheads=overheads))
    # The answer at 0.334 brings the third batch at 0.336: the step that was launched at 0.334 goes without prompts.
    assert firsts(done) == [0.102, 0.334, 0.444, pytest.approx(0.444 + 0.01 + 0.11)]


def test_a_long_prompt_alone_is_in_every_third_step() -> None:
    """One step is on the device when a chunk is answered, and another is launched before the next plan is there."""
    overheads = Overheads(0.0, turnaround_s=0.002, prepare_s=0.0, deliver_s=0.0, handover_s=0.0)
    times = Flat()
    done = run(mixed(), due((0.0, 100, 100), (0.205, 300, 1)), times, settings(overheads=overheads))
    assert firsts(done) == [0.102, pytest.approx(0.224 + 3 * 0.11 + 2 * 0.02)]
    phases = [phase for phase, _, _ in times.asked]
    assert phases[13:20] == ["mixed", "decode", "decode", "mixed", "decode", "decode", "mixed"]


def test_a_pass_behind_nothing_waits_for_its_preparation_and_others_do_not() -> None:
    overheads = Overheads(0.0, 0.0, prepare_s=0.004, deliver_s=0.0, handover_s=0.0)
    done = run(mixed(), due((0.0, 100, 1), (0.0, 100, 1), (0.0, 100, 1)), server=settings(overheads=overheads))
    assert firsts(done) == [0.104, 0.204, 0.304]


def test_a_batch_beyond_the_room_of_a_step_is_spread_over_several_and_answered_with_the_last() -> None:
    policy = mixed(chunk=1 << 20)
    done = run(policy, due((0.0, 100, 50), (0.205, 5000, 1)), server=settings(pages=5000))
    # 2048, 2048 and 904 tokens, each with the row.
    assert firsts(done) == [0.1, pytest.approx(0.22 + 5.0 + 3 * 0.01)]
    assert done.sequences[0].largest_gap_s == pytest.approx(2.058)
    (_, step) = prompts_seen(policy)
    assert (step.mode, step.tokens, step.sequences) == (Mode.MIXED, 5000, 1)
    assert step.duration_s == pytest.approx(5.03)


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([(0, 10)], [(10, 50.0)]),
        ([(5, 100)], [(100, 5 * 100 + 5000.0)]),
        ([(0, 60), (0, 60)], [(100, 1800 + 800.0), (20, 20 * 40 + 200.0)]),
        ([(0, 250)], [(100, 5000.0), (100, 15000.0), (50, 50 * 200 + 1250.0)]),
        ([(0, 1)] * 65, [(64, 32.0), (1, 0.5)]),
    ],
)
def test_what_a_step_takes_along(chunks: list[tuple[int, int]], expected: list[tuple[int, float]]) -> None:
    assert list(step_sizes(chunks, 100)) == expected


# --- changes of mode --------------------------------------------------------------------------------------------------


class Changing(Plain):
    """A policy that goes from one mode to another at a moment."""

    def __init__(self, before: Mode, at_s: float, after: Mode, chunk: int = 100) -> None:
        super().__init__(FULL, before, chunk)
        self._at_s, self._after = at_s, after

    def plan(self, snapshot: Snapshot) -> Plan:
        if snapshot.now_s >= self._at_s:
            self._mode = self._after
        return super().plan(snapshot)


FOUR = ((0.0, 100, 100), *[(0.205, 100, 1)] * 4)


def test_what_decode_has_of_prompts_it_computes_though_the_mode_is_another_by_then() -> None:
    times = Flat()
    policy = Changing(Mode.MIXED, 0.215, Mode.SPLIT)
    done = run(policy, due(*FOUR), times)
    # Two batches with each worker: decode's in steps from 0.22 to 0.33 and on to 0.44, prefill's from a review on.
    assert max(s.prefill_batches for s in policy.seen) == 4
    assert firsts(done)[1:3] == [0.33, 0.44]
    review = next(s.now_s for s in policy.seen if s.now_s >= 0.215)
    assert firsts(done)[3:] == [pytest.approx(review + 0.1), pytest.approx(review + 0.2)]
    assert [s.mode for s in prompts_seen(policy)][:5].count(Mode.MIXED) == 3  # with the very first
    assert ("mixed", 128, 128) in times.asked


def test_what_prefill_has_it_computes_though_the_mode_is_mixed_by_then() -> None:
    policy = Changing(Mode.SPLIT, 0.215, Mode.MIXED)
    done = run(policy, due(*FOUR))
    assert max(s.prefill_batches for s in policy.seen) == 4
    assert firsts(done)[1:3] == [0.305, 0.405]
    # The review is at 0.23, when a step ends: the one after the next has the third prompt, from 0.24 on.
    assert firsts(done)[3:] == [0.35, 0.46]


def test_prompts_with_decode_take_its_turns_where_the_mode_is_turns_by_then() -> None:
    requests = due((0.0, 100, 400), (0.205, 7000, 1), (4.3, 100, 1), (4.301, 100, 1), (4.302, 100, 1))
    done = run(Changing(Mode.MIXED, 0.215, Mode.TURNS, chunk=1 << 20), requests, server=settings(pages=5000))
    # The long one is in steps from 0.22 to 2.278 and 4.336, when the first of prefill's passes begins; then it has a
    # turn of 2.058 between the first and the second pass, and one of 0.866 between the second and the third.
    first = 4.336 + 0.1
    second, last = first + 2.058 + 0.1, first + 2.058 + 0.1 + 0.866
    assert firsts(done) == [0.1, *(pytest.approx(at) for at in (last, first, second, last + 0.1))]


# --- pages ------------------------------------------------------------------------------------------------------------


def test_a_sequence_that_finds_no_page_leaves_the_steps_to_the_prompts() -> None:
    # 13 pages: 7 for the row's first 112 tokens; the prompt takes the other 6 and ends, then the row goes on.
    done = run(mixed(), due((0.0, 100, 40), (0.13, 96, 1)), server=settings(pages=13))
    assert all(sequence.end_s is not None for sequence in done.sequences)
    assert done.server.free_pages == 13
    assert done.sequences[0].preemptions == 0


# --- with a profile ---------------------------------------------------------------------------------------------------


def plan_ms(rows: int, context: int, tokens: int, start: int) -> float:
    """Returns a time as a machine could take it: the arithmetic of both, attention of each."""
    return 4 + 0.021 * (rows + tokens) + 29e-6 * rows * context + 1.7e-6 * tokens * (start + tokens / 2)


SIZES = [(r, 512, t, 0) for r in (16, 64, 256) for t in (256, 512, 1024, 2048)]


def with_mixed(points: list[tuple[int, int, int, int]] = SIZES) -> Profile:
    return replace(small_profile(), mixed=tuple(MixedPoint(*size, plan_ms(*size)) for size in points))


def ms(times: ProfileTimes, rows: int, context: int, tokens: int, start: int, sms: int = 132, other: int = 0) -> float:
    return 1e3 * times.mixed_s(rows, rows * context, tokens, tokens * (start + tokens / 2), sms, other)


def test_what_was_measured_is_read_off_again() -> None:
    times = ProfileTimes(with_mixed())
    for size in SIZES:
        assert ms(times, *size) == pytest.approx(plan_ms(*size), rel=1e-6), size


@pytest.mark.parametrize(
    "size", [(100, 512, 700, 0), (64, 2048, 512, 0), (64, 512, 512, 3000), (128, 1024, 1500, 500), (30, 700, 300, 100)]
)
def test_between_the_points_and_at_other_contexts_it_is_near_what_would_be_measured(
    size: tuple[int, int, int, int],
) -> None:
    assert ms(ProfileTimes(with_mixed()), *size) == pytest.approx(plan_ms(*size), rel=0.08)


def test_more_work_never_takes_less_time_and_less_than_both_apart() -> None:
    times = ProfileTimes(with_mixed())
    by_tokens = [ms(times, 64, 800, tokens, 0) for tokens in range(1, 2049, 37)]
    assert by_tokens == sorted(by_tokens)
    by_rows = [ms(times, rows, 800, 512, 0) for rows in range(0, 513, 16)]
    assert by_rows == sorted(by_rows)
    by_context = [ms(times, 64, context, 512, 0) for context in range(10, 8000, 500)]
    assert by_context == sorted(by_context)
    apart = 1e3 * (times.decode_s(64, 64 * 512, 132, 0) + times.prefill_s(512, 512**2 / 2, 132, 0))
    assert ms(times, 64, 512, 512, 0) < apart


def test_fewer_sms_and_company_cost_what_they_cost_a_prefill_pass() -> None:
    times = ProfileTimes(with_mixed())
    for pair in ((100, 0), (68, 64), (132, 132)):
        ratio = times.prefill_s(576, 576**2 / 2, *pair) / times.prefill_s(576, 576**2 / 2, 132, 0)
        assert ms(times, 64, 512, 512, 0, *pair) / ms(times, 64, 512, 512, 0) == pytest.approx(ratio)


def test_only_a_profile_with_mixed_passes_has_the_mode() -> None:
    without = replace(with_mixed(), mixed=())
    assert SimConfig("chunked", {}, without).settings().limits.modes == {Mode.SPLIT, Mode.TURNS}
    assert SimConfig("chunked", {}, with_mixed()).settings().limits.modes == set(Mode)


def test_chunked_keeps_decode_going_where_whole_prompts_stall_it() -> None:
    asked = RunSettings("", "mixed", 12.0, 20.0)
    chunked = simulate(SimConfig("chunked", {}, with_mixed()), asked)
    assert chunked.valid
    assert chunked.score.done == chunked.score.sent
    whole = simulate(SimConfig("static", {"mode": "turns", "chunk": "8192"}, with_mixed()), asked)
    assert chunked.score.itl_s is not None
    assert whole.score.itl_s is not None
    assert chunked.score.itl_s.max < whole.score.itl_s.max / 2
