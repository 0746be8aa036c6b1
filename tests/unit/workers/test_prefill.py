"""The prefill worker over a played engine: what is begun when, which pages are taken, and what memory that runs out
costs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from semipd.core.config import PAGE_SIZE
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import COORDINATOR, Holder, Role
from semipd.workers.prefill import PrefillWorker
from support.workers import Play, PlayedBackend, PlayedEngine, PlayedLink, PlayedTurns, batch, drop, new_account

ME = Holder(Role.PREFILL, 4)
COMPUTED, NO_ROOM = wk.CHUNK_OUTCOME_COMPUTED, wk.CHUNK_OUTCOME_NO_ROOM
GONE, FAILED = wk.CHUNK_OUTCOME_GONE, wk.CHUNK_OUTCOME_FAILED


class Stage:
    def __init__(self, pages: int = 16, ahead: int = 1) -> None:
        self.account = new_account(pages)
        self.turns = PlayedTurns()
        self.engine = PlayedEngine(ahead, self.turns.log)
        self.link: PlayedLink

    def leases(self, count: int) -> list[int]:
        return [self.account.open(ME) for _ in range(count)]

    def run(self, play: Callable[[], Play]) -> None:
        self.link = PlayedLink(play())
        PrefillWorker(self.link, self.engine, self.account, ME, PlayedBackend(self.turns)).run()
        assert self.link.played
        self.account.check()

    def answers(self) -> list[tuple[int, wk.ChunkOutcome]]:
        """Returns lease and outcome, in the order of the answers."""
        return [(chunk.lease, chunk.outcome) for done in self.link.prefilled() for chunk in done.chunks]


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_on_a_gpu_a_batch_is_begun_ahead_of_the_one_on_the_device(stage: Stage) -> None:
    a, b, c = stage.leases(3)
    stage.run(lambda: iter([[batch(1, [a]), batch(2, [b]), batch(3, [c])], [], [], []]))
    launched = [f"launch {a}", f"launch {b}", f"finish {a}", f"launch {c}", f"finish {b}", f"finish {c}"]
    assert stage.engine.done() == launched
    assert [done.batch for done in stage.link.prefilled()] == [1, 2, 3]
    assert stage.answers() == [(a, COMPUTED), (b, COMPUTED), (c, COMPUTED)]


def test_a_batch_without_another_behind_it_is_answered_in_the_same_pass(stage: Stage) -> None:
    (lease,) = stage.leases(1)

    def play() -> Play:
        yield [batch(1, [lease])]
        assert len(stage.link.prefilled()) == 1

    stage.run(play)
    (chunk,) = stage.link.prefilled()[0].chunks
    assert (chunk.computed, chunk.sampled.token, chunk.sampled.position) == (20, 7, 0)


def test_where_a_device_allows_for_none_ahead_a_batch_is_answered_for_before_the_next_begins() -> None:
    stage = Stage(ahead=0)
    a, b = stage.leases(2)
    stage.run(lambda: iter([[batch(1, [a]), batch(2, [b])], [], []]))
    assert stage.engine.done() == [f"launch {a}", f"finish {a}", f"launch {b}", f"finish {b}"]


def test_in_turns_what_follows_is_prepared_before_the_turn_ends_and_waits_for_the_next(stage: Stage) -> None:
    a, b = stage.leases(2)
    stage.turns.on = True
    stage.run(lambda: iter([[batch(1, [a]), batch(2, [b])], [], [], [], []]))
    first = [f"prepare {a}", "wait for turn", f"launch {a}", f"finish {a}", f"prepare {b}", "end turn 20, then 20"]
    second = ["wait for turn", f"launch {b}", f"finish {b}", "end turn 20, then 0"]
    assert stage.turns.log[:10] == first + second
    assert set(stage.turns.log[10:]) <= {"end turn"}


def test_a_batch_that_comes_during_a_pass_is_prepared_before_that_ends(stage: Stage) -> None:
    a, b = stage.leases(2)
    stage.turns.on = True
    stage.engine.glances = 3
    stage.run(lambda: iter([[batch(1, [a])], [], [batch(2, [b])], *[[]] * 8]))
    assert stage.turns.log.index(f"prepare {b}") < stage.turns.log.index(f"finish {a}")


def test_while_prefill_may_keep_the_turn_the_next_pass_is_launched_before_the_last_is_answered(stage: Stage) -> None:
    a, b, c = stage.leases(3)
    stage.turns.on, stage.turns.turn_tokens = True, 40
    answered: list[int] = []
    stage.engine.on_launch = lambda: answered.append(len(stage.link.prefilled()))
    stage.run(lambda: iter([[batch(1, [a]), batch(2, [b]), batch(3, [c], tokens=30)], *[[]] * 8]))
    assert stage.turns.log[:6] == [
        f"prepare {a}",
        "wait for turn",
        f"launch {a}",
        f"finish {a}",
        f"prepare {b}",
        "keep turn 20, then 20",
    ]
    assert stage.turns.log[6] == f"launch {b}"
    assert "end turn 20, then 30" in stage.turns.log
    assert answered == [0, 0, 2]
    assert stage.answers() == [(a, COMPUTED), (b, COMPUTED), (c, COMPUTED)]


def test_a_pass_that_was_prepared_is_launched_before_one_is_tried_again(stage: Stage) -> None:
    """A pass that is prepared and not launched would be overwritten by the next one that is prepared."""
    a, b, c = stage.leases(3)
    stage.turns.on = True
    stage.engine.glances = 1
    stage.engine.where, stage.engine.too_much = "finish", lambda together: len(together) > 1
    stage.run(lambda: iter([[batch(1, [a, b])], [], [batch(2, [c])], *[[]] * 8]))
    assert stage.answers() == [(a, COMPUTED), (b, COMPUTED), (c, COMPUTED)]
    lines = [line for line in stage.turns.log if line.split()[0] in ("prepare", "launch")]
    assert all(one.startswith("prepare") for one in lines[::2])
    assert [line.split()[1] for line in lines[::2]] == [line.split()[1] for line in lines[1::2]]


# --- pages ----------------------------------------------------------------------------------------------------------


def test_a_chunk_takes_the_pages_that_it_lacks(stage: Stage) -> None:
    (lease,) = stage.leases(1)

    def play() -> Play:
        yield [batch(1, [lease], tokens=PAGE_SIZE + 1, ends=False)]
        yield [batch(2, [lease], tokens=PAGE_SIZE - 1, start=PAGE_SIZE + 1)]

    stage.run(play)
    assert [len(item.table) for item in stage.engine.items] == [2, 2]
    assert [c.HasField("sampled") for done in stage.link.prefilled() for c in done.chunks] == [False, True]
    assert len(stage.account.table(lease)) == 2


def test_a_chunk_without_room_is_answered_and_the_others_of_its_batch_are_computed() -> None:
    stage = Stage(pages=3)
    a, b, c = stage.leases(3)
    stage.run(lambda: iter([[batch(1, [a, b]), batch(2, [c], tokens=5)], [], []]))
    assert stage.answers() == [(a, COMPUTED), (b, NO_ROOM), (c, COMPUTED)]
    assert len(stage.account.table(b)) == 0


def test_chunks_of_leases_that_were_dropped_or_taken_away_are_not_computed(stage: Stage) -> None:
    dropped, taken, closed, stays = stage.leases(4)
    stage.account.hand_over(taken, ME, COORDINATOR)
    stage.account.release(closed, ME)
    stage.run(lambda: iter([[batch(1, [dropped, taken, closed, stays]), drop(dropped)], []]))
    assert stage.answers() == [(dropped, GONE), (taken, GONE), (closed, GONE), (stays, COMPUTED)]
    assert [item.lease for item in stage.engine.items] == [stays]


def test_a_batch_of_which_nothing_is_left_is_answered_all_the_same(stage: Stage) -> None:
    (lease,) = stage.leases(1)
    stage.run(lambda: iter([[batch(1, [lease]), drop(lease)], []]))
    assert stage.answers() == [(lease, GONE)]
    assert stage.engine.log == []


# --- memory that runs out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["prepare", "launch", "finish"])
def test_what_is_too_much_together_is_computed_chunk_by_chunk(stage: Stage, where: str) -> None:
    leases = stage.leases(3)
    stage.engine.where, stage.engine.too_much = where, lambda together: len(together) > 1
    stage.run(lambda: iter([[batch(1, leases)], []]))
    assert stage.answers() == [(lease, COMPUTED) for lease in leases]
    assert [item.lease for item in stage.engine.items] == leases
    (done,) = stage.link.prefilled()
    assert all(chunk.HasField("sampled") for chunk in done.chunks)


@pytest.mark.parametrize("where", ["prepare", "launch", "finish"])
def test_a_chunk_that_is_too_much_alone_fails_alone(stage: Stage, where: str) -> None:
    small, large, other = stage.leases(3)
    stage.engine.where, stage.engine.too_much = where, lambda together: large in together
    stage.run(lambda: iter([[batch(1, [small, large, other])], []]))
    assert stage.answers() == [(small, COMPUTED), (large, FAILED), (other, COMPUTED)]
    (done,) = stage.link.prefilled()
    assert "memory" in done.chunks[1].error


def test_the_batch_behind_one_that_was_too_much_is_computed_as_it_was_begun(stage: Stage) -> None:
    first, second, behind = stage.leases(3)
    stage.engine.too_much = lambda together: len(together) > 1
    stage.run(lambda: iter([[batch(1, [first, second]), batch(2, [behind])], [], []]))
    assert stage.answers() == [(first, COMPUTED), (second, COMPUTED), (behind, COMPUTED)]
    assert stage.engine.log.count(f"launch {behind}") == 1
