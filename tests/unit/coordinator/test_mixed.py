"""Tests mixed batches from the coordinator's side: the decode worker has prompts, and modes change meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from semipd.core.partition import Mode, Phase
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Role
from semipd.policies.builtin.chunked import Chunked
from semipd.policies.builtin.fcfs import Fcfs
from support.stage import GATEWAY, Stage


class MixedStage(Stage):
    """A stage under the policy `chunked`."""

    def __init__(self, budget: int = 512, **config: Any) -> None:
        super().__init__(policy=Chunked(Chunked.Options(budget=budget)), **config)

    def mixed(self) -> list[wk.PrefillBatch]:
        return self.batches(self.decode)

    def compute(self, batch: wk.PrefillBatch, token: int = 7) -> None:
        self.prefill_batch(batch, token, self.decode)

    def compute_all(self) -> None:
        for batch in self.mixed():
            self.compute(batch)

    def use(self, budget: int | None) -> None:
        """Changes the policy to `chunked`, or without a budget to `fcfs`."""
        self.coordinator.host.swap(Fcfs() if budget is None else Chunked(Chunked.Options(budget=budget)))
        self.clock.advance(1.0)
        self.coordinator.act()

    def begin(self, ticket: int, **request: Any) -> int:
        """Brings a request into the decode batch with its first token, 7, and returns its lease."""
        self.submit(ticket, **request)
        self.compute_all()
        (adopt,) = self.adopts()
        return adopt.lease

    def succeed(self) -> None:
        self.decode = self.assign(Role.DECODE)
        self.coordinator.act()

    def stages(self) -> dict[str, str]:
        sequences = (s for e in self.state.requests.entries() for s in e.live.values())
        return {s.entry.request.request_id: s.stage.value for s in sequences}


def test_prompts_go_to_the_decode_worker_and_on_into_its_batch() -> None:
    stage = MixedStage()
    stage.submit(1, max_tokens=2)
    assert stage.batches() == []
    (batch,) = stage.mixed()
    assert stage.account.holder(batch.chunks[0].lease) == stage.decode.holder
    stage.compute(batch)
    (adopt,) = stage.adopts()
    stage.step([(adopt.lease, 1, 8)], ends=[adopt.lease])
    assert stage.tokens(1) == [7, 8]
    assert stage.all_pages_are_free()


def test_mode_is_told_with_the_snapshot_and_with_each_step() -> None:
    stage = MixedStage()
    lease = stage.begin(1)
    stage.step([(lease, 1, 8)])
    snapshot = stage.coordinator.snapshot()
    assert snapshot.mode is Mode.MIXED
    assert [(s.phase, s.mode) for s in snapshot.observed.steps] == [
        (Phase.PREFILL, Mode.MIXED),
        (Phase.DECODE, Mode.MIXED),
    ]
    assert not stage.control.turns()


def test_a_long_prompt_comes_in_chunks_two_batches_ahead_at_most() -> None:
    stage = MixedStage(budget=32)
    stage.submit(1, prompt=80)
    stage.submit(2, prompt=80)
    stage.submit(3, prompt=80)
    first, second = stage.mixed()
    assert [len(b.chunks[0].tokens) for b in (first, second)] == [32, 32]
    assert first.chunks[0].lease != second.chunks[0].lease
    stage.compute(first)
    (third,) = stage.mixed()
    assert (third.chunks[0].lease, third.chunks[0].start) == (first.chunks[0].lease, 32)


def test_when_the_mode_changes_batches_end_where_they_are_and_their_prompts_go_on_elsewhere() -> None:
    stage = MixedStage(budget=32)
    stage.submit(1, prompt=60, max_tokens=1)
    stage.submit(2, prompt=60, max_tokens=1)
    one, two = stage.mixed()
    stage.use(None)
    assert stage.state.mode is Mode.SPLIT
    stage.submit(3, prompt=20, max_tokens=1)
    (three,) = stage.batches()
    assert len(three.chunks) == 1, "the others are with the decode worker"
    stage.compute(one)
    (rest,) = stage.batches()
    assert (rest.chunks[0].lease, rest.chunks[0].start) == (one.chunks[0].lease, 32)
    assert stage.account.holder(rest.chunks[0].lease) == stage.prefill.holder
    assert stage.account.holder(two.chunks[0].lease) == stage.decode.holder
    stage.use(32)
    stage.compute(two)
    (last,) = stage.mixed()
    assert (last.chunks[0].lease, last.chunks[0].start) == (two.chunks[0].lease, 32)
    stage.prefill_batch(three)
    stage.prefill_batch(rest)
    stage.compute(last)
    for adopt in stage.adopts():
        stage.step([(adopt.lease, 1, 8)], ends=[adopt.lease])
    assert [stage.tokens(t)[0] for t in (1, 2, 3)] == [7, 7, 7]
    modes = [s.mode for s in stage.coordinator.snapshot().observed.steps if s.phase is Phase.PREFILL]
    assert modes == [Mode.MIXED, Mode.MIXED, Mode.SPLIT, Mode.SPLIT, Mode.MIXED], "as they were given out"


def test_batches_of_another_mode_take_no_room_of_this_one() -> None:
    stage = MixedStage(budget=16)
    for ticket in (1, 2, 3):
        stage.submit(ticket, prompt=40)
    assert len(stage.mixed()) == 2
    stage.use(None)
    assert len(stage.batches()) == 1
    assert stage.coordinator.has_work(Role.PREFILL)
    assert stage.coordinator.has_work(Role.DECODE)
    assert stage.coordinator.snapshot().prefill_batches == 3


def test_when_the_decode_worker_dies_its_rows_and_its_prompts_are_its_successors() -> None:
    stage = MixedStage(budget=32)
    lease = stage.begin(1)
    stage.submit(2, prompt=60)
    (first,) = stage.mixed()
    stage.compute(first)
    (second,) = stage.mixed()
    stage.account.take(second.chunks[0].lease, 1, stage.decode.holder)
    stage.die(stage.decode)
    assert stage.stages() == {"r1": "ready", "r2": "waiting"}
    stage.succeed()
    adopts = stage.adopts()
    again = stage.mixed()
    assert len(adopts) + len(again) == 1, "both took part in a death: one at a time"
    (adopt,) = adopts
    assert adopt.lease == lease
    stage.step([(lease, 1, 8)])
    (again_,) = stage.mixed()
    assert (again_.chunks[0].lease, again_.chunks[0].start) == (second.chunks[0].lease, 31), "the budget less one row"
    stage.compute(again_)
    assert stage.tokens(1) == [7, 8]
    assert stage.tokens(2) == [7]


@pytest.mark.parametrize("dies", [Role.PREFILL, Role.DECODE])
def test_a_death_returns_the_batches_of_the_dead_alone(dies: Role) -> None:
    stage = MixedStage(budget=16)
    stage.submit(1, prompt=40)
    (mixed,) = stage.mixed()
    stage.use(None)
    stage.submit(2, prompt=40)
    (split,) = stage.batches()
    stage.die(stage.prefill if dies is Role.PREFILL else stage.decode)
    lost, kept = ("r2", "r1") if dies is Role.PREFILL else ("r1", "r2")
    assert stage.stages() == {kept: "prefilling", lost: "waiting"}
    if dies is Role.PREFILL:
        stage.compute(mixed)
    else:
        stage.prefill_batch(split)
    strikes = {s.entry.request.request_id: s.strikes for e in stage.state.requests.entries() for s in e.live.values()}
    assert strikes[lost] > 0
    assert strikes[kept] == 0


def test_the_answer_of_a_worker_that_does_not_have_the_batch_has_no_effect() -> None:
    stage = MixedStage()
    stage.submit(1)
    (batch,) = stage.mixed()
    chunk = wk.ChunkDone(lease=batch.chunks[0].lease, outcome=wk.CHUNK_OUTCOME_COMPUTED, computed=20)
    stage.prefill_says(wk.PrefillDone(batch=batch.batch, chunks=[chunk]))
    assert stage.stages() == {"r1": "prefilling"}


def test_a_request_cancelled_while_its_prompt_is_in_a_pass_is_dropped_there_and_its_pages_are_freed() -> None:
    stage = MixedStage()
    stage.submit(1)
    (batch,) = stage.mixed()
    stage.gateway_says(gw.FromGateway(cancel=gw.Cancel(ticket=1)))
    assert stage.drops(stage.decode) == [batch.chunks[0].lease]
    assert stage.drops(stage.prefill) == []
    assert stage.account.holder(batch.chunks[0].lease) == stage.decode.holder, "it computes on them"
    stage.compute(batch)
    assert stage.all_pages_are_free()


def test_a_cancelled_prompt_leaves_no_page_behind_when_its_worker_dies() -> None:
    stage = MixedStage()
    stage.submit(1)
    (batch,) = stage.mixed()
    stage.account.take(batch.chunks[0].lease, 2, stage.decode.holder)
    stage.coordinator.on_gateway_lost(GATEWAY)
    stage.die(stage.decode)
    assert stage.all_pages_are_free()


@pytest.mark.parametrize("answered", [0, 1], ids=["the batch", "its answer"])
def test_a_lost_message_is_noticed(answered: int) -> None:
    stage = MixedStage()
    stage.submit(1)
    (lost,) = stage.mixed()
    stage.clock.advance(2.0)
    of_another = wk.Heartbeat(pulses=1, answered_through=9, idle=True)
    stage.coordinator.on_worker_message(stage.prefill, wk.FromWorker(heartbeat=of_another))
    stage.coordinator.act()
    assert stage.mixed() == [], "the prefill worker knows nothing of it"
    beat = wk.Heartbeat(pulses=1, answered_through=answered, idle=True)
    stage.coordinator.on_worker_message(stage.decode, wk.FromWorker(heartbeat=beat))
    stage.coordinator.act()
    (again,) = stage.mixed()
    assert again.chunks[0].lease == lost.chunks[0].lease
    stage.compute(again)
    assert stage.tokens(1) == [7]


def test_a_prompt_that_kills_the_decode_worker_twice_is_ended_and_the_others_are_not() -> None:
    stage = MixedStage()
    other = stage.begin(2)
    stage.submit(1)
    for _ in range(4):
        stage.die(stage.decode, killed=False)
        stage.succeed()
        while not any("r1" in [c.request_id for c in b.chunks] for b in stage.mixed()) and "r1" in stage.stages():
            adopts = stage.adopts()
            assert len(adopts) <= 1
            position = len(stage.tokens(2))
            stage.step([(other, position, 50 + position)])
        if "r1" not in stage.stages():
            break
    assert stage.reasons() == {1: "INTERNAL"}
    assert "r2" in stage.stages()


def test_a_worker_that_has_prompts_alone_is_at_work() -> None:
    stage = MixedStage()
    stage.clock.advance(50.0)
    stage.submit(1)
    assert stage.decode.progress_s == stage.clock.now(), "its time begins now"
    assert stage.coordinator.has_work(Role.DECODE)
    assert not stage.coordinator.has_work(Role.PREFILL)
    stage.compute_all()


def test_prompts_in_each_others_way_in_a_full_pool_give_way_until_one_is_done() -> None:
    """Two prompts of three pages in a pool of four, both half computed."""
    stage = MixedStage(pages=4, budget=32)
    stage.submit(1, prompt=48, max_tokens=1)
    stage.submit(2, prompt=48, max_tokens=1)
    for _ in range(20):
        for batch in stage.mixed():
            stage.compute(batch)
        for adopt in stage.adopts():
            stage.step([(adopt.lease, len(adopt.continuation.output), 9)], ends=[adopt.lease])
        if not len(stage.state.requests):
            break
    assert len(stage.state.requests) == 0
    assert stage.all_pages_are_free()


def test_a_starved_batch_gets_the_pages_of_a_prompt_that_waits() -> None:
    stage = MixedStage(pages=4, budget=33)
    stage.begin(1, prompt=16)
    stage.submit(2, prompt=40)
    stage.compute_all()
    assert stage.mixed() == []
    before = stage.account.counts().free
    stage.decode_says(wk.StepDone(starved=True))
    assert stage.account.counts().free == before + 2, "of the decode worker's own, by way of the coordinator"
