"""The decode worker over a batch that is one step late, as a GPU's is; what a step writes is checked in each test."""

from __future__ import annotations

import pytest

from semipd.core.config import PAGE_SIZE
from semipd.internal.v1 import sequence_pb2 as seq
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import COORDINATOR
from support.decode_stage import ME, DecodeStage
from support.workers import Play, adopt, drop


@pytest.fixture
def stage() -> DecodeStage:
    return DecodeStage()


def test_a_step_is_launched_before_the_one_before_it_is_answered_for(stage: DecodeStage) -> None:
    lease = stage.lease()

    def play() -> Play:
        yield [adopt(lease, 5)]
        assert (stage.batch.flying, stage.tokens(lease)) == (1, [])
        yield []
        assert (stage.batch.flying, stage.tokens(lease)) == (1, [1])
        yield []
        assert (stage.batch.flying, stage.tokens(lease)) == (1, [1, 2])

    stage.run(play)


def test_the_pages_of_a_sequence_that_stops_are_released_when_the_step_launched_meanwhile_is_over(
    stage: DecodeStage,
) -> None:
    lease = stage.lease()
    stage.batch.ends[lease] = 2

    def play() -> Play:
        yield [adopt(lease, 5)]
        yield []
        yield []
        assert stage.tokens(lease) == [1, 2]
        assert stage.held(lease), "the third step writes to them"
        yield []
        assert not stage.held(lease)
        yield []
        assert stage.turns.marked[-2:] == [False, False]

    stage.run(play)
    (end,) = [end for step in stage.link.steps() for end in step.ends]
    assert end.end.reason == seq.END_REASON_STOP_TOKEN
    assert stage.tokens(lease) == [1, 2], "what the third step made of it is nobody's"
    assert stage.account.free_pages == stage.pages


def test_a_sequence_that_ends_by_its_length_is_in_no_step_after_its_last(stage: DecodeStage) -> None:
    lease = stage.lease()

    def play() -> Play:
        yield [adopt(lease, 5, max_tokens=3)]
        yield []
        yield []
        assert not stage.held(lease)

    stage.run(play)
    assert stage.tokens(lease) == [1, 2]


def test_a_sequence_that_fails_is_reported_and_its_pages_follow(stage: DecodeStage) -> None:
    lease, other = stage.lease(), stage.lease()
    stage.batch.fails.add(lease)

    def play() -> Play:
        yield [adopt(lease, 5), adopt(other, 6)]
        yield []
        assert stage.held(lease)
        yield []
        assert not stage.held(lease)

    stage.run(play)
    assert [f.lease for step in stage.link.steps() for f in step.failures] == [lease]
    assert stage.tokens(lease) == []
    assert stage.tokens(other) == [1, 2]


def test_what_is_dropped_is_reported_at_once_and_released_when_the_device_is_done(stage: DecodeStage) -> None:
    lease = stage.lease()

    def play() -> Play:
        yield [adopt(lease, 5)]
        yield [drop(lease)]
        assert not stage.held(lease), "its step was collected in this pass: nothing else was to be launched"
        assert stage.told("dropped") == [lease]

    stage.run(play)
    assert stage.tokens(lease) == []


def test_a_second_drop_of_a_sequence_that_is_leaving_releases_nothing_early(stage: DecodeStage) -> None:
    """It has ended, which the coordinator did not know when it dropped it; a step launched since still writes."""
    lease, other = stage.lease(), stage.lease()
    stage.batch.ends[lease] = 1

    def play() -> Play:
        yield [adopt(lease, 5), adopt(other, 5)]
        yield []
        assert stage.held(lease)
        yield [drop(lease), drop(lease)]
        assert not stage.held(lease)

    stage.run(play)
    assert stage.told("dropped") == [lease, lease]


def test_the_drop_of_a_sequence_that_was_never_adopted_releases_its_pages(stage: DecodeStage) -> None:
    lease = stage.lease()
    stage.run(lambda: iter([[drop(lease)], []]))
    assert stage.account.free_pages == stage.pages
    assert stage.told("dropped") == [lease]


def test_an_adoption_that_was_taken_back_before_it_came_is_answered_as_dropped(stage: DecodeStage) -> None:
    lease = stage.lease()
    stage.account.hand_over(lease, ME, COORDINATOR)
    stage.run(lambda: iter([[adopt(lease, 5)], []]))
    assert stage.told("dropped") == [lease]
    assert stage.account.holder(lease) == COORDINATOR


def test_an_adoption_that_is_said_twice_counts_once(stage: DecodeStage) -> None:
    lease = stage.lease()
    stage.run(lambda: iter([[adopt(lease, 5), adopt(lease, 5)], [adopt(lease, 5)], []]))
    assert stage.tokens(lease) == [1, 2]


# --- pages ----------------------------------------------------------------------------------------------------------


def test_a_sequence_whose_page_is_full_gets_another(stage: DecodeStage) -> None:
    lease = stage.lease()

    def play() -> Play:
        yield [adopt(lease, PAGE_SIZE)]
        assert len(stage.account.table(lease)) == 2

    stage.run(play)


def test_one_gives_way_and_nobody_else_while_its_pages_are_on_their_way() -> None:
    """Three sequences in a full pool; two want a page at once, and the third, which gives way, has two pages."""
    stage = DecodeStage(pages=4)
    first, second, last = stage.lease(), stage.lease(), stage.lease(2)

    def play() -> Play:
        yield [
            adopt(first, PAGE_SIZE - 1, sequence=1),
            adopt(second, PAGE_SIZE - 1, sequence=2),
            adopt(last, PAGE_SIZE, sequence=3),
        ]
        assert stage.batch.flying == 1
        yield []
        assert stage.told("preempted") == [last]
        assert stage.batch.leases() == [first, second]
        yield []
        assert not stage.held(last)
        assert [len(stage.account.table(lease)) for lease in (first, second)] == [2, 2]
        yield []

    stage.run(play)
    assert stage.told("preempted") == [last]
    assert not any(step.starved for step in stage.link.steps())
    assert stage.tokens(last) == []
    assert stage.tokens(first) == stage.tokens(second) == [1, 2]


def test_who_gives_way_is_the_least_important_and_of_these_the_latest() -> None:
    stage = DecodeStage(pages=3)
    leases = [stage.lease() for _ in range(3)]

    def play() -> Play:
        yield [
            adopt(leases[0], PAGE_SIZE, priority=0, sequence=1),
            adopt(leases[1], 5, priority=-1, sequence=2),
            adopt(leases[2], 5, priority=0, sequence=3),
        ]
        yield []

    stage.run(play)
    assert stage.told("preempted") == [leases[1]]


def test_a_sequence_alone_without_a_page_waits_and_says_so() -> None:
    stage = DecodeStage(pages=2)
    lease = stage.lease()
    elsewhere = stage.account.open(COORDINATOR)
    stage.account.take(elsewhere, 1, COORDINATOR)

    def play() -> Play:
        yield [adopt(lease, PAGE_SIZE)]
        assert [step.starved for step in stage.link.steps()] == [True]
        stage.account.release(elsewhere, COORDINATOR)
        yield []
        yield []

    stage.run(play)
    assert stage.told("preempted") == []
    assert stage.tokens(lease) == [1]


def test_a_sequence_whose_lease_was_taken_away_is_forgotten_and_not_released(stage: DecodeStage) -> None:
    lease, other = stage.lease(), stage.lease()

    def play() -> Play:
        yield [adopt(lease, PAGE_SIZE - 1), adopt(other, 3)]
        stage.account.hand_over(lease, ME, COORDINATOR)
        stage.batch.reassigned.add(lease)
        yield []
        yield []

    stage.run(play)
    assert stage.told("dropped") == [lease]
    assert stage.account.holder(lease) == COORDINATOR
    assert stage.tokens(other) == [1, 2]


# --- resignation and turns ------------------------------------------------------------------------------------------


def test_who_resigns_reports_what_is_on_the_device_and_then_hands_every_lease_to_the_coordinator(
    stage: DecodeStage,
) -> None:
    stays, ends, leaves = stage.lease(), stage.lease(), stage.lease()
    stage.batch.ends[ends] = 2

    def play() -> Play:
        yield [adopt(stays, 5), adopt(ends, 6), adopt(leaves, 7)]
        yield []
        yield [drop(leaves), wk.ToWorker(resign=wk.Resign())]

    stage.run(play, to_the_end=False)
    assert stage.tokens(stays) == stage.tokens(ends) == [1, 2]
    assert stage.account.holder(stays) == COORDINATOR
    assert stage.account.holder(ends) is None
    assert stage.account.holder(leaves) is None
    assert stage.batch.flying == 0
    kinds = [m.WhichOneof("message") for m in stage.link.said if not m.HasField("heartbeat")]
    assert kinds[-2:] == ["step_done", "resigned"]
    assert stage.told("dropped") == [leaves]


def test_in_turns_a_step_is_answered_for_while_the_other_phase_computes(stage: DecodeStage) -> None:
    lease = stage.lease()
    stage.turns.on = True

    def play() -> Play:
        yield [adopt(lease, 5)]
        assert (stage.batch.flying, stage.tokens(lease)) == (1, [])
        yield []
        assert (stage.batch.flying, stage.tokens(lease)) == (1, [1])

    stage.run(play)
    turn = ["prepare", "wait for turn", "step"]
    assert stage.turns.log == [*turn, "prepare", "wait", "end turn", *turn]


def test_in_turns_while_the_other_phase_is_idle_the_next_step_is_launched_as_soon_as_one_is_done(
    stage: DecodeStage,
) -> None:
    """It is not launched before: a prompt that comes would have to wait for both."""
    lease = stage.lease()
    stage.turns.on = stage.turns.alone = True

    def play() -> Play:
        yield [adopt(lease, 5)]
        assert (stage.batch.flying, stage.tokens(lease)) == (1, [])
        yield []
        assert (stage.batch.flying, stage.tokens(lease)) == (1, [1])

    stage.run(play)
    assert stage.turns.log == ["step", "prepare", "wait", "end turn", "step"]


def test_what_was_launched_ahead_is_answered_for_before_the_first_turn(stage: DecodeStage) -> None:
    lease = stage.lease()
    stage.batch.ends[lease] = 1

    def play() -> Play:
        yield [adopt(lease, 5)]
        stage.turns.on = True
        yield []
        assert stage.tokens(lease) == [1]
        assert not stage.held(lease)

    stage.run(play)
    assert stage.turns.log.count("step") == 1, "a sequence that has ended is in no other step"
