"""The decode worker in mixed batches: which step takes which prompts along, and what their answers say."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import COORDINATOR, Holder, Role
from semipd.workers.decode import DecodeWorker
from semipd.workers.mixed_batches import StepLimits
from support.workers import LateBatch, Play, PlayedBackend, PlayedLink, PlayedTurns, adopt, batch, drop, new_account

ME = Holder(Role.DECODE, 3)
COMPUTED, NO_ROOM = wk.CHUNK_OUTCOME_COMPUTED, wk.CHUNK_OUTCOME_NO_ROOM
GONE, FAILED = wk.CHUNK_OUTCOME_GONE, wk.CHUNK_OUTCOME_FAILED


class Stage:
    def __init__(self, pages: int = 16) -> None:
        self.account = new_account(pages)
        self.turns = PlayedTurns()
        self.batch = LateBatch(self.account, ME, self.turns.log)
        self.link: PlayedLink
        self.limits: StepLimits | None = None

    def prompts(self, count: int) -> list[int]:
        return [self.account.open(ME) for _ in range(count)]

    def running(self) -> int:
        (lease,) = self.prompts(1)
        assert self.account.take(lease, 1, ME) is not None
        return lease

    def run(self, play: Callable[[], Play], *, to_the_end: bool = True) -> None:
        self.link = PlayedLink(play())
        DecodeWorker(self.link, self.batch, self.account, ME, PlayedBackend(self.turns), self.limits).run()
        assert self.link.played == to_the_end
        self.account.check()

    def answers(self) -> list[tuple[int, wk.ChunkOutcome]]:
        """Returns lease and outcome, in the order of the answers."""
        return [(chunk.lease, chunk.outcome) for done in self.link.prefilled() for chunk in done.chunks]

    def answered(self) -> list[int]:
        return [done.batch for done in self.link.prefilled()]

    def steps(self) -> list[str]:
        return [line for line in self.turns.log if line.startswith("step")]


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_a_step_takes_along_one_batch_and_the_answer_comes_when_its_pass_is_over(stage: Stage) -> None:
    row, (a, b) = stage.running(), stage.prompts(2)

    def play() -> Play:
        yield [adopt(row, 5), batch(1, [a]), batch(2, [b])]
        assert stage.steps() == [f"step with {a}"]
        assert stage.answered() == [], "it is on the device"
        yield []
        assert stage.steps() == [f"step with {a}", f"step with {b}"]
        assert stage.answered() == [1]
        yield []
        assert stage.answered() == [1, 2]

    stage.run(play)
    (first, _) = stage.link.prefilled()
    (chunk,) = first.chunks
    assert (chunk.outcome, chunk.computed, chunk.sampled.token) == (COMPUTED, 20, 7)
    assert first.seconds > 0
    positions = [p for step in stage.link.steps() for p in step.positions]
    assert positions[:2] == [1, 2], "decoding went on meanwhile"


def test_where_nothing_runs_prompts_are_computed_alone(stage: Stage) -> None:
    (a,) = stage.prompts(1)
    stage.run(lambda: iter([[batch(1, [a], ends=False)], [], [batch(2, [a], start=20)], [], []]))
    assert stage.answers() == [(a, COMPUTED), (a, COMPUTED)]
    assert [chunk.HasField("sampled") for done in stage.link.prefilled() for chunk in done.chunks] == [False, True]
    assert [item.start for item in stage.batch.prompts] == [0, 20]
    assert [len(item.table) for item in stage.batch.prompts] == [2, 3]
    assert stage.turns.marked[-1] is False


def test_a_prompt_that_is_done_is_adopted_and_goes_on_in_the_same_pages(stage: Stage) -> None:
    (a,) = stage.prompts(1)

    def play() -> Play:
        yield [batch(1, [a])]
        yield []
        assert stage.answered() == [1]
        # Through the coordinator's hands.
        stage.account.hand_over(a, ME, COORDINATOR)
        stage.account.hand_over(a, COORDINATOR, ME)
        yield [adopt(a, 20, max_tokens=3)]
        yield []
        yield []
        yield []

    stage.run(play)
    assert [p for step in stage.link.steps() for p in step.positions] == [1, 2]
    assert stage.account.counts().free == 16


def test_chunks_without_pages_are_not_computed_and_the_rest_are() -> None:
    stage = Stage(pages=3)
    a, b = stage.prompts(2)
    theirs = stage.account.open(COORDINATOR)
    stage.run(lambda: iter([[batch(1, [a, b, theirs])], [], []]))
    assert stage.answers() == [(a, COMPUTED), (b, NO_ROOM), (theirs, GONE)]


def test_a_batch_of_which_nothing_can_be_computed_is_answered_at_once() -> None:
    stage = Stage(pages=1)
    row, (a,) = stage.running(), stage.prompts(1)

    def play() -> Play:
        yield [adopt(row, 5), batch(1, [a])]
        assert stage.answers() == [(a, NO_ROOM)]

    stage.run(play)


def test_a_running_sequence_gets_its_page_before_a_prompt_does() -> None:
    stage = Stage(pages=2)
    row, (a,) = stage.running(), stage.prompts(1)
    stage.run(lambda: iter([[adopt(row, 16), batch(1, [a], tokens=10)], []]))
    assert stage.answers() == [(a, NO_ROOM)]
    assert [lease for step in stage.link.steps() for lease in step.preempted] == []


def test_a_prompt_dropped_before_its_pass_is_not_computed_and_its_pages_are_the_droppers(stage: Stage) -> None:
    a, b = stage.prompts(2)
    stage.run(lambda: iter([[batch(1, [a, b]), drop(a)], [], []]))
    assert stage.answers() == [(a, GONE), (b, COMPUTED)]
    assert stage.account.holder(a) == ME
    assert [lease for step in stage.link.steps() for lease in step.dropped] == []


def test_a_prompt_dropped_in_its_pass_keeps_its_pages_until_it_is_answered(stage: Stage) -> None:
    row, (a,) = stage.running(), stage.prompts(1)

    def play() -> Play:
        yield [adopt(row, 5), batch(1, [a])]
        yield [drop(a)]
        assert stage.answers() == [(a, COMPUTED)]
        assert stage.account.holder(a) == ME

    stage.run(play)


def test_a_prompt_dropped_when_it_was_answered_for_is_released(stage: Stage) -> None:
    (a,) = stage.prompts(1)
    stage.run(lambda: iter([[batch(1, [a])], [], [drop(a)], []]))
    assert stage.account.holder(a) is None
    assert stage.account.counts().free == 16


def test_where_memory_runs_out_prompts_are_taken_along_one_by_one_and_answers_stay_in_order(stage: Stage) -> None:
    row, (before, a, b, after) = stage.running(), stage.prompts(4)
    stage.batch.too_much = lambda leases: len(leases) > 1 or leases == [b]

    def play() -> Play:
        yield [adopt(row, 5), batch(1, [before]), batch(2, [a, b]), batch(3, [after])]
        for _ in range(6):
            yield []

    stage.run(play)
    assert stage.answered() == [1, 2, 3]
    assert stage.answers() == [(before, COMPUTED), (a, COMPUTED), (b, FAILED), (after, COMPUTED)]
    assert stage.steps()[:5] == [f"step with {before}", "step", f"step with {a}", "step", f"step with {after}"]


def test_a_prompt_too_large_alone_while_another_batch_is_on_the_device_is_answered_after_it(stage: Stage) -> None:
    a, b = stage.prompts(2)
    stage.batch.too_much = lambda leases: leases == [b]
    stage.run(lambda: iter([[batch(1, [a]), batch(2, [b])], [], [], []]))
    assert stage.answers() == [(a, COMPUTED), (b, FAILED)]


def test_what_a_step_has_no_room_for_is_spread_over_several_and_answered_as_one(stage: Stage) -> None:
    a, b, c = stage.prompts(3)
    stage.limits = StepLimits(tokens=32, prompts=2)
    stage.run(lambda: iter([[batch(1, [a, b], tokens=40), batch(2, [c], tokens=10)], [], [], [], [], []]))
    assert stage.steps() == [f"step with {a}", f"step with {a} with {b}", f"step with {b}", f"step with {c}"]
    computed = [(item.lease, item.start, len(item.tokens), item.sampling is not None) for item in stage.batch.prompts]
    assert computed == [(a, 0, 32, False), (a, 32, 8, True), (b, 0, 24, False), (b, 24, 16, True), (c, 0, 10, True)]
    assert [[(x.lease, x.computed, x.sampled.token) for x in done.chunks] for done in stage.link.prefilled()] == [
        [(a, 40, 7), (b, 40, 7)],
        [(c, 10, 7)],
    ]


@pytest.mark.parametrize(("step_tokens", "sizes"), [(16, [16, 16, 8]), (24, [24, 16]), (64, [32, 8])])
def test_a_step_takes_along_no_more_than_the_plan_wishes(stage: Stage, step_tokens: int, sizes: list[int]) -> None:
    (a,) = stage.prompts(1)
    stage.limits = StepLimits(tokens=32)
    stage.run(lambda: iter([[batch(1, [a], tokens=40, step_tokens=step_tokens)], [], [], [], [], []]))
    assert [len(item.tokens) for item in stage.batch.prompts] == sizes
    assert [[x.computed for x in done.chunks] for done in stage.link.prefilled()] == [[40]]


def test_many_short_prompts_are_spread_too(stage: Stage) -> None:
    leases = stage.prompts(5)
    stage.limits = StepLimits(tokens=100, prompts=2)
    stage.run(lambda: iter([[batch(1, leases, tokens=3)], [], [], [], []]))
    assert [line.count("with") for line in stage.steps()] == [2, 2, 1]
    assert stage.answers() == [(lease, COMPUTED) for lease in leases]


def test_of_a_prompt_in_pieces_that_is_too_large_nothing_more_is_computed(stage: Stage) -> None:
    a, b = stage.prompts(2)
    stage.limits = StepLimits(tokens=32)
    stage.batch.too_much = lambda leases: a in leases
    stage.run(lambda: iter([[batch(1, [a, b], tokens=40)], [], [], [], [], []]))
    assert stage.answers() == [(a, FAILED), (b, COMPUTED)]
    assert [(item.lease, item.start, len(item.tokens)) for item in stage.batch.prompts] == [(b, 0, 24), (b, 24, 16)]


def test_of_a_prompt_that_fails_while_its_first_piece_is_on_the_device_nothing_is_said_before_that_is_over(
    stage: Stage,
) -> None:
    (a,) = stage.prompts(1)
    stage.limits = StepLimits(tokens=32)
    steps: list[int] = []
    stage.batch.too_much = lambda leases: len(stage.steps()) == 1

    def play() -> Play:
        yield [batch(1, [a], tokens=40)]
        assert stage.batch.flying == 1
        yield []
        steps.append(len(stage.batch.prompts))
        assert stage.answers() == [(a, FAILED)]

    stage.run(play)
    assert steps == [1], "the first piece is over"


def test_a_worker_that_resigns_answers_for_what_is_on_the_device_and_leaves_the_rest_to_its_successor(
    stage: Stage,
) -> None:
    row, (a, b) = stage.running(), stage.prompts(2)

    def play() -> Play:
        yield [adopt(row, 5), batch(1, [a]), batch(2, [b])]
        yield [wk.ToWorker(resign=wk.Resign())]

    stage.run(play, to_the_end=False)
    assert stage.answers() == [(a, COMPUTED)]
    assert stage.account.holder(row) == COORDINATOR
    assert stage.account.holder(b) == ME, "reassigned when it is gone"
    assert stage.link.said[-1].HasField("resigned")


def test_heartbeats_tell_what_is_answered_and_whether_a_batch_is_left(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semipd.workers.coordinator_link.HEARTBEAT_S", -1.0)
    row, (a,) = stage.running(), stage.prompts(1)
    stage.run(lambda: iter([[adopt(row, 5), batch(4, [a])], [], [], []]))
    beats = [(m.heartbeat.answered_through, m.heartbeat.idle) for m in stage.link.said if m.HasField("heartbeat")]
    assert beats[0] == (0, False)
    assert beats[-1] == (4, True), "rows are none of it"


def test_where_the_phases_take_turns_again_a_batch_that_was_given_before_is_computed_in_ours() -> None:
    stage = Stage()
    stage.turns.on = True
    row, (a,) = stage.running(), stage.prompts(1)
    stage.run(lambda: iter([[adopt(row, 5), batch(1, [a])], [], []]))
    assert stage.answers() == [(a, COMPUTED)]
    turn = stage.turns.log.index("wait for turn")
    assert stage.turns.log[turn : turn + 5] == ["wait for turn", f"step with {a}", "prepare", "wait", "end turn"]
