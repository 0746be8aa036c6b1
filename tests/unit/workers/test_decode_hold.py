"""Sequences that a plan holds back in the decode worker, over a batch that is one step late, as a GPU's is."""

from __future__ import annotations

import pytest

from semipd.core.config import PAGE_SIZE
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import COORDINATOR
from semipd.workers.decode import DecodeWorker
from support.decode_stage import ME, DecodeStage
from support.workers import Play, PlayedBackend, PlayedLink, adopt, drop, hold


@pytest.fixture
def stage() -> DecodeStage:
    return DecodeStage()


def test_a_held_sequence_is_in_no_step_and_goes_on_when_it_is_no_longer_held(stage: DecodeStage) -> None:
    lease, other = stage.lease(), stage.lease()

    def play() -> Play:
        yield [adopt(lease, 5), adopt(other, 6)]
        yield [hold(lease)]
        yield []
        yield []
        assert stage.tokens(lease) == [1], "of the step that was on the device"
        assert stage.tokens(other) == [1, 2, 3]
        yield [hold(other)]
        yield []
        yield [hold()]
        yield []
        yield []

    stage.run(play)
    assert stage.tokens(lease) == [1, 2, 3, 4, 5]
    assert stage.tokens(other) == [1, 2, 3, 4, 5, 6]
    assert stage.told("dropped") == stage.told("preempted") == []


def test_while_all_are_held_nothing_is_computed_and_the_other_phase_has_the_device(stage: DecodeStage) -> None:
    lease = stage.lease()

    def play() -> Play:
        yield [adopt(lease, 5)]
        yield [hold(lease)]
        yield []
        assert stage.batch.flying == 0
        assert stage.turns.marked[-2:] == [False, False]
        yield []
        yield [hold()]
        assert stage.turns.marked[-1]
        assert stage.batch.flying == 1

    stage.run(play)
    assert len(stage.link.steps()) == 1


def test_a_sequence_may_be_held_before_it_is_adopted(stage: DecodeStage) -> None:
    lease = stage.lease()

    def play() -> Play:
        yield [hold(lease)]
        yield [adopt(lease, 5)]
        yield []
        assert stage.batch.flying == 0
        yield [hold()]
        yield []

    stage.run(play)
    assert stage.tokens(lease) == [1]


def test_a_held_sequence_that_is_dropped_gives_its_pages_back(stage: DecodeStage) -> None:
    lease = stage.lease()
    stage.run(lambda: iter([[adopt(lease, 5)], [hold(lease)], [drop(lease)], []]))
    assert stage.account.free_pages == stage.pages
    assert stage.told("dropped") == [lease]


def test_a_held_sequence_wants_no_page_and_yields_its_own_where_it_is_the_least_important() -> None:
    stage = DecodeStage(pages=2)
    first, second = stage.lease(), stage.lease()

    def play() -> Play:
        yield [hold(second), adopt(first, PAGE_SIZE - 1, sequence=1), adopt(second, PAGE_SIZE, sequence=2)]
        assert stage.told("preempted") == []
        yield []
        assert stage.told("preempted") == [second]
        yield []
        yield []

    stage.run(play)
    assert stage.tokens(first) == [1, 2, 3], "the pages of a sequence that no step knows are free at once"
    assert stage.tokens(second) == []


def test_a_heartbeat_names_the_held_sequences_among_those_of_the_batch(stage: DecodeStage) -> None:
    lease, other = stage.lease(), stage.lease()
    worker = DecodeWorker(
        PlayedLink(iter([[adopt(lease, 5), adopt(other, 5), hold(lease, 77)]])),
        stage.batch,
        stage.account,
        ME,
        PlayedBackend(stage.turns),
    )
    worker.run()
    beat = wk.Heartbeat()
    worker._describe(beat)
    assert set(beat.leases) == {lease, other}
    assert list(beat.held) == [lease]


def test_who_resigns_hands_held_sequences_over_with_the_others(stage: DecodeStage) -> None:
    lease = stage.lease()

    def play() -> Play:
        yield [adopt(lease, 5)]
        yield [hold(lease), wk.ToWorker(resign=wk.Resign())]

    stage.run(play, to_the_end=False)
    assert stage.account.holder(lease) == COORDINATOR
    assert stage.tokens(lease) == [1]
