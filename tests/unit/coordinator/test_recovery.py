"""Deaths of workers, lost messages and a full pool, as the coordinator sees them."""

from __future__ import annotations

import pytest

from semipd.coordinator.decode_dispatch import ADOPT_LOST_AFTER_S
from semipd.internal.v1 import worker_pb2 as wk
from support.stage import Stage


def test_the_stream_goes_on_after_the_decode_worker_died() -> None:
    stage = Stage()
    lease = stage.running(1, max_tokens=4)
    stage.step([(lease, 1, 8)])
    stage.die(stage.decode)
    stage.decode = stage.assign(stage.decode.role)
    stage.coordinator.act()
    (adopt,) = stage.adopts()
    assert adopt.lease == lease, "its KV is still there"
    assert adopt.context == 20 + 1
    assert list(adopt.continuation.output) == [7, 8]
    stage.step([(lease, 2, 9)])
    stage.step([(lease, 3, 10)], ends=[lease])
    assert stage.tokens(1) == [7, 8, 9, 10]
    assert stage.all_pages_are_free()


def test_tokens_that_died_with_the_worker_are_made_again_where_it_had_released_the_pages() -> None:
    stage = Stage()
    lease = stage.running(1, max_tokens=2)
    stage.account.release(lease, stage.decode.holder)  # it finished the sequence, and died before it could say so
    stage.die(stage.decode)
    stage.decode = stage.assign(stage.decode.role)
    stage.coordinator.act()
    (batch,) = stage.batches()
    assert list(batch.chunks[0].continuation.output) == [7]
    assert list(batch.chunks[0].tokens)[-1] == 7
    stage.prefill_batch(batch, token=8)
    assert stage.tokens(1) == [7, 8]


def test_what_a_dead_worker_still_sends_twice_is_delivered_once() -> None:
    stage = Stage()
    lease = stage.running(1)
    stage.step([(lease, 1, 8)])
    stage.step([(lease, 1, 8)])
    assert stage.tokens(1) == [7, 8]


def test_a_prefill_worker_dies_in_mid_chunk_and_its_successor_goes_on_from_the_last_chunk() -> None:
    stage = Stage(max_batch_tokens=32)
    stage.submit(1, prompt=64)
    first, *_ = stage.batches()
    stage.prefill_batch(first)
    (second,) = stage.batches()
    stage.account.take(second.chunks[0].lease, 1, stage.prefill.holder)
    stage.die(stage.prefill)
    stage.prefill = stage.assign(stage.prefill.role)
    stage.coordinator.act()
    (again,) = stage.batches()
    assert again.chunks[0].start == 32
    stage.prefill_batch(again)
    assert stage.tokens(1) == [7]


def test_a_cancelled_request_leaves_no_page_behind_when_its_worker_dies() -> None:
    stage = Stage()
    lease = stage.running(1)
    stage.coordinator.on_gateway_lost(b"gateway.0")
    assert stage.account.holder(lease) == stage.decode.holder
    stage.die(stage.decode)
    assert stage.all_pages_are_free()


def test_a_request_that_crashes_its_worker_twice_is_ended_and_the_others_are_not() -> None:
    stage = Stage()
    leases = {ticket: stage.running(ticket) for ticket in (1, 2)}
    poison = leases[1]
    for _ in range(4):
        stage.die(stage.decode, killed=False)
        stage.decode = stage.assign(stage.decode.role)
        stage.coordinator.act()
        adopts = stage.adopts()
        while adopts and all(a.lease != poison for a in adopts):
            position = len(stage.tokens(2))
            stage.step([(leases[2], position, 50 + position)])
            adopts = stage.adopts()
        if not adopts:
            break
        assert len(adopts) == 1, "those who took part in a death join one at a time"
    assert stage.reasons() == {1: "INTERNAL"}
    assert stage.state.requests.by_lease(leases[2]) is not None


def test_a_few_kills_from_outside_end_nobody() -> None:
    stage = Stage()
    stage.running(1)
    for _ in range(4):
        stage.die(stage.decode, killed=True)
        stage.decode = stage.assign(stage.decode.role)
        stage.coordinator.act()
        stage.adopts()
    assert stage.reasons() == {}


def test_a_gap_in_the_tokens_means_the_sequence_is_computed_again() -> None:
    stage = Stage()
    lease = stage.running(1)
    stage.step([(lease, 2, 9)])
    assert stage.drops(stage.decode) == [lease]
    stage.account.release(lease, stage.decode.holder)
    stage.decode_says(wk.StepDone(dropped=[lease]))
    stage.prefill_all()
    assert stage.tokens(1) == [7, 7], "the journal's token 7, then what the prefill worker samples next"


@pytest.mark.parametrize("through", [0, 1], ids=["the last message", "one that others followed"])
def test_a_lost_adopt_is_noticed(through: int) -> None:
    stage = Stage()
    lease = stage.running(1)
    if through == 0:
        stage.clock.advance(ADOPT_LOST_AFTER_S + 1)
    beat = wk.Heartbeat(pulses=1, leases=[], adopted_through=through)
    stage.coordinator.on_worker_message(stage.decode, wk.FromWorker(heartbeat=beat))
    stage.coordinator.act()
    (batch,) = stage.batches()
    assert batch.chunks[0].lease != lease
    stage.account.release(lease, stage.decode.holder)
    stage.prefill_batch(batch, token=8)
    assert stage.tokens(1) == [7, 8]


@pytest.mark.parametrize("answered", [0, 1], ids=["the batch", "its answer"])
def test_a_lost_prefill_message_is_noticed(answered: int) -> None:
    stage = Stage()
    stage.submit(1)
    stage.batches()
    stage.clock.advance(2.0)
    beat = wk.Heartbeat(pulses=1, answered_through=answered, idle=True)
    stage.coordinator.on_worker_message(stage.prefill, wk.FromWorker(heartbeat=beat))
    stage.coordinator.act()
    stage.prefill_all()
    assert stage.tokens(1) == [7]


def test_a_batch_that_is_still_computed_is_not_taken_for_lost() -> None:
    stage = Stage()
    stage.submit(1)
    stage.batches()
    stage.clock.advance(60.0)
    stage.coordinator.on_worker_message(stage.prefill, wk.FromWorker(heartbeat=wk.Heartbeat(pulses=9, idle=False)))
    stage.coordinator.act()
    assert stage.batches() == []


def test_leases_that_the_request_table_does_not_know_are_dropped() -> None:
    stage = Stage()
    beat = wk.Heartbeat(pulses=1, leases=[12345])
    stage.coordinator.on_worker_message(stage.decode, wk.FromWorker(heartbeat=beat))
    assert stage.drops(stage.decode) == [12345]


def test_a_preempted_sequence_is_computed_again_and_goes_on() -> None:
    stage = Stage()
    lease = stage.running(1)
    stage.step([(lease, 1, 8)])
    stage.account.release(lease, stage.decode.holder)
    stage.decode_says(wk.StepDone(preempted=[lease]))
    (batch,) = stage.batches()
    assert list(batch.chunks[0].tokens)[-2:] == [7, 8]
    stage.prefill_batch(batch, token=9)
    assert stage.tokens(1) == [7, 8, 9]


def test_prompts_in_each_others_way_in_a_full_pool_give_way_until_one_is_done() -> None:
    """Two prompts of three pages in a pool of four, both half computed."""
    stage = Stage(pages=4, max_batch_tokens=32)
    stage.submit(1, prompt=48, max_tokens=1)
    stage.submit(2, prompt=48, max_tokens=1)
    for _ in range(20):
        for batch in stage.batches():
            stage.prefill_batch(batch)
        for adopt in stage.adopts():
            position = len(adopt.continuation.output)
            stage.step([(adopt.lease, position, 9)], ends=[adopt.lease])
        if not len(stage.state.requests):
            break
    assert len(stage.state.requests) == 0
    assert stage.all_pages_are_free()


def test_a_starved_decode_worker_gets_the_pages_of_a_prompt_that_waits() -> None:
    stage = Stage(pages=4, max_batch_tokens=32)
    stage.running(1, prompt=16)
    stage.submit(2, prompt=40)
    for batch in stage.batches():
        stage.prefill_batch(batch)
    before = stage.account.counts().free
    stage.decode_says(wk.StepDone(starved=True))
    assert stage.account.counts().free > before


def test_when_the_resident_is_lost_everybody_hears_at_once() -> None:
    stage = Stage()
    stage.running(1)
    stage.submit(2)
    stage.coordinator.on_resident_lost()
    assert stage.reasons() == {1: "WORKER_LOST", 2: "WORKER_LOST"}
    assert len(stage.state.requests) == 0
