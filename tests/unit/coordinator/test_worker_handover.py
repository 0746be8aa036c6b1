"""Partition back end `mps`: workers that take over from each other while requests run."""

from __future__ import annotations

from semipd.coordinator.state import Worker
from semipd.coordinator.worker_pool import SHUTDOWN_LIMIT_S
from semipd.core.partition import Shares
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import COORDINATOR
from support.worker_pool import PoolStage

MORE_DECODE = Shares(100, 40)
MORE_PREFILL = Shares(40, 100)


def successor(stage: PoolStage) -> int:
    """Returns the incarnation of the worker that is about to take over."""
    (found,) = [incarnation for title, _, incarnation in stage.pool.processes() if title == "successor"]
    return found


def begin(stage: PoolStage, shares: Shares) -> int:
    """Asks for a change of shares and lets a successor be assigned."""
    stage.partition.set(shares)
    stage.round()
    return successor(stage)


def resign(stage: PoolStage, worker: Worker, leases: list[int]) -> None:
    """Plays the decode worker that was asked to resign."""
    for lease in leases:
        stage.account.hand_over(lease, worker.holder, COORDINATOR)
    stage.says(worker.incarnation, resigned=wk.Resigned())
    stage.end(worker, 0)


def test_the_old_decode_worker_goes_on_until_its_successor_is_ready() -> None:
    stage = PoolStage()
    lease, old = stage.running(1, max_tokens=5), stage.decode
    new = begin(stage, MORE_DECODE)
    assert stage.assigned()[new].active_thread_percentage == 40
    assert not stage.assigned()[new].replacement
    assert stage.decode is old
    assert not stage.told(old, "resign")
    stage.says(new, heartbeat=wk.Heartbeat(pulses=3))  # it holds nothing; that is no news about the batch
    stage.step([(lease, 1, 8)])
    assert stage.tokens(1) == [7, 8]


def test_a_decode_worker_resigns_and_its_successor_adopts_at_once() -> None:
    stage = PoolStage()
    lease, old, prefill = stage.running(1, max_tokens=5), stage.decode, stage.prefill
    new = begin(stage, MORE_DECODE)
    stage.ready(new)
    stage.round()
    assert stage.told(old, "resign")
    stage.says(old.incarnation, heartbeat=wk.Heartbeat(pulses=9, adopted_through=1))  # leases are on their way
    stage.step([(lease, 1, 8)])
    resign(stage, old, [lease])
    stage.round()
    assert stage.decode.incarnation == new
    (adopt,) = stage.adopts()
    assert (adopt.lease, adopt.context, list(adopt.continuation.output)) == (lease, 21, [7, 8])
    stage.step([(lease, 2, 9)])
    assert stage.tokens(1) == [7, 8, 9]
    assert stage.prefill is prefill, "only the role whose share changed is replaced"
    stage.settle()
    assert stage.roles() == ["decode", "prefill", "spare", "spare"]
    assert stage.state.metrics.restarts_total == 0
    assert all(s.strikes == 0 for e in stage.state.requests.entries() for s in e.live.values())


def test_what_is_ready_while_the_old_one_resigns_waits_for_the_successor() -> None:
    stage = PoolStage()
    old = stage.decode
    stage.ready(begin(stage, MORE_DECODE))
    stage.round()
    stage.submit(1)
    stage.prefill_all()
    assert not stage.told(old, "adopt")
    resign(stage, old, [])
    stage.round()
    assert len(stage.adopts()) == 1


def test_a_request_cancelled_while_its_worker_resigns_leaves_no_page_behind() -> None:
    stage = PoolStage()
    lease, old = stage.running(1), stage.decode
    stage.ready(begin(stage, MORE_DECODE))
    stage.round()
    stage.coordinator.on_gateway_lost(b"gateway.0")
    resign(stage, old, [lease])  # before it heard of the cancel
    stage.round()
    assert stage.all_pages_are_free()


def test_a_prefill_worker_answers_for_its_batches_and_half_computed_prompts_go_on_with_its_successor() -> None:
    stage = PoolStage(max_batch_tokens=32)
    stage.submit(1, prompt=70)
    old, (first,) = stage.prefill, stage.batches()
    new = begin(stage, MORE_PREFILL)
    stage.ready(new)
    stage.round()
    assert stage.prefill is old, "it has a batch"
    stage.prefill_batch(first)
    assert stage.batches() == [], "and gets no more"
    stage.round()
    assert stage.prefill.incarnation == new
    assert stage.told(old, "shutdown")
    (second,) = stage.batches()
    assert second.chunks[0].start == 32
    stage.prefill_batch(second)
    stage.prefill_all()
    assert stage.tokens(1) == [7]


def test_both_roles_change_each_on_its_own() -> None:
    stage = PoolStage()
    prefill, decode = stage.prefill, stage.decode
    stage.partition.set(Shares(70, 30))
    stage.round()
    for incarnation, appoint in stage.assigned().items():
        if appoint.active_thread_percentage == 70:
            stage.ready(incarnation)
    stage.round()
    assert stage.prefill is not prefill
    assert stage.decode is decode
    assert stage.prefill.percentage == 70


def test_requests_for_shares_during_a_handover_are_coalesced_to_the_latest() -> None:
    stage = PoolStage()
    old = stage.decode
    new = begin(stage, Shares(100, 40))
    for decode in (50, 60, 70):
        stage.partition.set(Shares(100, decode))
        stage.round()
    assert successor(stage) == new, "one handover a role at a time"
    stage.ready(new)
    stage.round()
    resign(stage, old, [])
    stage.settle()
    resign(stage, stage.decode, [])
    stage.settle()
    assert stage.decode.percentage == 70
    percents = [m.appoint.active_thread_percentage for inbox in stage.transport.worker.values() for m in inbox]
    assert [p for p in percents if p not in (0, 100)] == [40, 70]


def test_a_change_that_is_taken_back_before_the_successor_is_ready_changes_nothing() -> None:
    stage = PoolStage()
    old = stage.decode
    new = begin(stage, MORE_DECODE)
    stage.partition.set(Shares(100, 100))
    stage.ready(new)
    stage.round()
    assert stage.decode is old
    assert not stage.told(old, "resign")
    assert any(m.HasField("shutdown") for m in stage.transport.worker[new])


def test_a_successor_that_dies_before_it_is_ready_costs_nobody_anything_and_another_is_tried() -> None:
    stage = PoolStage()
    lease, old = stage.running(1), stage.decode
    stage.children.started[begin(stage, MORE_DECODE)].code = 1
    stage.round()
    stage.step([(lease, 1, 8)])
    assert stage.decode is old
    assert stage.tokens(1) == [7, 8]
    stage.clock.advance(1.0)
    stage.settle()
    assert stage.told(old, "resign")


def test_when_the_old_worker_dies_the_successor_is_assigned_ready_or_not() -> None:
    stage = PoolStage()
    lease, old = stage.running(1), stage.decode
    new = begin(stage, MORE_DECODE)
    stage.end(old)
    stage.round()
    assert stage.decode.incarnation == new
    assert stage.adopts() == []
    stage.ready(new)
    stage.round()
    assert [a.lease for a in stage.adopts()] == [lease]


def test_an_old_worker_that_dies_while_it_resigns_loses_nothing() -> None:
    stage = PoolStage()
    lease, old = stage.running(1), stage.decode
    new = begin(stage, MORE_DECODE)
    stage.ready(new)
    stage.round()
    stage.end(old)
    stage.round()
    assert stage.decode.incarnation == new
    assert [a.lease for a in stage.adopts()] == [lease]


def test_a_worker_whose_last_words_were_not_read_before_its_end_is_not_suspected() -> None:
    stage = PoolStage()
    lease, old = stage.running(1), stage.decode
    stage.ready(begin(stage, MORE_DECODE))
    stage.round()
    stage.account.hand_over(lease, old.holder, COORDINATOR)
    stage.end(old, 0)
    stage.round()
    assert [a.lease for a in stage.adopts()] == [lease]
    assert all(s.strikes == 0 for e in stage.state.requests.entries() for s in e.live.values())


def test_a_resignation_that_takes_too_long_is_a_stall() -> None:
    stage = PoolStage()
    lease, old = stage.running(1), stage.decode
    new = begin(stage, MORE_DECODE)
    stage.ready(new)
    stage.round()
    stage.clock.advance(stage.state.config.stall_replace_s + 0.1)
    stage.round()
    assert stage.child(old).code is not None
    stage.round()
    assert stage.decode.incarnation == new
    assert [a.lease for a in stage.adopts()] == [lease]


def test_when_the_successor_dies_after_the_old_one_was_asked_to_resign_the_next_one_takes_over() -> None:
    stage = PoolStage()
    lease, old = stage.running(1), stage.decode
    new = begin(stage, MORE_DECODE)
    stage.ready(new)
    stage.round()
    stage.children.started[new].code = 1
    stage.round()
    resign(stage, old, [lease])
    stage.clock.advance(1.0)
    stage.settle()
    assert stage.decode.incarnation not in (old.incarnation, new)
    assert [a.lease for a in stage.adopts()] == [lease]
    assert stage.decode.percentage == 40


def test_a_drained_worker_that_does_not_end_is_ended() -> None:
    stage = PoolStage()
    old = stage.prefill
    stage.ready(begin(stage, MORE_PREFILL))
    stage.round()
    assert stage.prefill is not old
    stage.says(old.incarnation, heartbeat=wk.Heartbeat(pulses=99))  # its messages are refused
    stage.clock.advance(SHUTDOWN_LIMIT_S + 0.1)
    stage.round()
    assert stage.child(old).code is not None
