"""Plans that hold running sequences back or preempt them, and how the coordinator executes them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest

from semipd.core.plan import Plan
from semipd.core.snapshot import SequenceId, Snapshot
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Role
from semipd.policies.builtin.fcfs import Fcfs
from semipd.policies.contract import Policy
from support.stage import Stage
from support.worker_pool import PoolStage


class HoldPolicy(Policy):
    """Plans as `fcfs` does, and holds back or preempts the sequences that the test names, while they run."""

    name = "hold"

    def __init__(self) -> None:
        super().__init__()
        self._fcfs = Fcfs()
        self.held: Collection[SequenceId] = ()
        self.preempted: list[SequenceId] = []

    def plan(self, snapshot: Snapshot) -> Plan:
        running = {r.sequence for r in snapshot.running}
        preempt = tuple(n for n in self.preempted if n in running)
        self.preempted.clear()
        hold = running.intersection(self.held).difference(preempt)
        return replace(self._fcfs.plan(snapshot), hold=frozenset(hold), preempt=preempt)


class HoldStage(Stage):
    """A stage under `HoldPolicy`. Sequences are numbered from 0 by arrival."""

    def __init__(self, **config: object) -> None:
        self.policy = HoldPolicy()
        super().__init__(policy=self.policy, **config)  # type: ignore[arg-type]

    def act(self, after_s: float = 0.1) -> None:
        """Lets the coordinator ask the policy again."""
        self.clock.advance(after_s)
        self.coordinator.act()

    def hold(self, *sequences: SequenceId) -> None:
        self.policy.held = sequences
        self.act()

    def preempt(self, *sequences: SequenceId) -> None:
        self.policy.preempted += sequences
        self.act()

    def holds(self) -> list[list[int]]:
        """Takes the Hold messages that the decode worker was sent."""
        inbox = self.transport.worker[self.decode.incarnation]
        self.transport.worker[self.decode.incarnation] = [m for m in inbox if not m.HasField("hold")]
        return [list(m.hold.leases) for m in inbox if m.HasField("hold")]

    def beat(self, leases: list[int], held: list[int], through: int = 9) -> None:
        beat = wk.Heartbeat(pulses=1, leases=leases, adopted_through=through, held=held)
        self.coordinator.on_worker_message(self.decode, wk.FromWorker(heartbeat=beat))
        self.coordinator.act()

    def succeed(self) -> None:
        self.decode = self.assign(Role.DECODE)
        self.coordinator.act()


# --- hold -----------------------------------------------------------------------------------------------------------


def test_the_decode_worker_is_told_once_whom_to_leave_out_and_once_when_they_go_on() -> None:
    stage = HoldStage()
    leases = [stage.running(ticket, max_tokens=4) for ticket in (1, 2)]
    stage.hold(0)
    stage.act()
    assert stage.holds() == [[leases[0]]]
    stage.step([(leases[1], 1, 8)])
    stage.hold()
    stage.act()
    assert stage.holds() == [[]]
    stage.step([(leases[0], 1, 8), (leases[1], 2, 9)])
    assert stage.tokens(1) == [7, 8]
    assert stage.tokens(2) == [7, 8, 9]


def test_each_plan_replaces_the_hold_of_the_one_before() -> None:
    stage = HoldStage()
    leases = [stage.running(ticket) for ticket in (1, 2)]
    stage.hold(0)
    stage.hold(1)
    stage.hold(0, 1)
    assert stage.holds() == [[leases[0]], [leases[1]], leases]


def test_a_token_of_a_step_that_was_under_way_when_the_hold_began_counts() -> None:
    stage = HoldStage()
    lease = stage.running(1)
    stage.hold(0)
    stage.step([(lease, 1, 8)])
    stage.hold()
    stage.step([(lease, 2, 9)])
    assert stage.tokens(1) == [7, 8, 9]


def test_a_ready_sequence_that_is_held_is_not_handed_over_and_keeps_nobody_waiting() -> None:
    stage = HoldStage()
    del stage.state.workers[Role.DECODE]
    for ticket in (1, 2):
        stage.submit(ticket)
    stage.prefill_all()
    stage.policy.held = (0,)
    stage.act()
    stage.succeed()
    (adopt,) = stage.adopts()
    assert adopt.request_id == "r2"
    assert stage.holds() == []
    stage.hold()
    assert [a.request_id for a in stage.adopts()] == ["r1"]


def test_a_held_sequence_keeps_its_place_in_the_batch() -> None:
    stage = HoldStage(max_running=1)
    stage.running(1)
    stage.submit(2)
    stage.prefill_all()
    stage.hold(0)
    assert stage.adopts() == []


def test_while_all_are_held_the_decode_worker_has_no_work_and_does_not_count_as_stalled() -> None:
    stage = HoldStage()
    lease = stage.running(1)
    assert stage.coordinator.has_work(Role.DECODE)
    stage.hold(0)
    assert not stage.coordinator.has_work(Role.DECODE)
    stage.act(60.0)
    stage.hold()
    assert stage.coordinator.has_work(Role.DECODE)
    stage.step([(lease, 1, 8)])
    assert stage.tokens(1) == [7, 8]


def test_a_held_sequence_goes_on_with_the_next_worker_when_its_own_dies() -> None:
    stage = HoldStage()
    leases = [stage.running(ticket, max_tokens=4) for ticket in (1, 2)]
    stage.step([(lease, 1, 8) for lease in leases])
    stage.hold(0)
    stage.die(stage.decode)
    stage.succeed()
    assert [a.lease for a in stage.adopts()] == [leases[1]]
    assert stage.holds() == [], "the new worker has it not"
    stage.step([(leases[1], 2, 9)])
    stage.hold()
    (adopt,) = stage.adopts()
    assert adopt.lease == leases[0], "its KV is still there"
    assert list(adopt.continuation.output) == [7, 8]
    stage.step([(leases[0], 2, 9)])
    assert stage.tokens(1) == stage.tokens(2) == [7, 8, 9]


def test_a_sequence_is_held_again_once_the_next_worker_has_it() -> None:
    stage = HoldStage()
    lease = stage.running(1)
    stage.hold(0)
    stage.holds()
    stage.die(stage.decode)
    stage.succeed()
    stage.hold()
    assert [a.lease for a in stage.adopts()] == [lease]
    stage.hold(0)
    assert stage.holds() == [[lease]]


def test_a_held_sequence_can_be_cancelled_and_expires() -> None:
    stage = HoldStage()
    first, second = stage.running(1), stage.running(2, deadline_s=1.0)
    stage.hold(0, 1)
    stage.gateway_says(gw.FromGateway(cancel=gw.Cancel(ticket=1, cause=gw.CANCEL_CAUSE_CLIENT_GONE)))
    stage.act(2.0)
    assert stage.reasons() == {1: "CANCELLED_BY_CLIENT", 2: "EXPIRED_RUNNING"}
    assert stage.drops(stage.decode) == [first, second]
    for lease in (first, second):
        stage.account.release(lease, stage.decode.holder)
    stage.decode_says(wk.StepDone(dropped=[first, second]))
    assert stage.all_pages_are_free()
    assert stage.holds()[-1] == []


def test_a_held_sequence_that_yields_its_pages_is_computed_again() -> None:
    stage = HoldStage()
    lease = stage.running(1)
    stage.hold(0)
    stage.account.release(lease, stage.decode.holder)
    stage.decode_says(wk.StepDone(preempted=[lease]))
    (batch,) = stage.batches()
    stage.prefill_batch(batch, token=8)
    assert stage.tokens(1) == [7, 8]
    (adopt,) = stage.adopts()
    stage.holds()
    stage.act()
    assert stage.holds() == [[adopt.lease]], "it runs again, and the next plan holds it again"


def test_a_policy_that_is_replaced_holds_nobody_any_more() -> None:
    stage = HoldStage()
    stage.running(1)
    stage.hold(0)
    stage.coordinator.host.swap(Fcfs())
    stage.act()
    assert stage.holds()[-1] == []
    assert stage.coordinator.has_work(Role.DECODE)


def test_a_drain_waits_for_held_sequences_and_new_plans_let_them_go_on() -> None:
    stage = HoldStage()
    lease = stage.running(1, max_tokens=2)
    stage.hold(0)
    ask = gw.Ask(ask_id=9)
    ask.drain.SetInParent()
    stage.gateway_says(gw.FromGateway(ask=ask))
    stage.act()
    assert stage.told("answer") == []
    stage.hold()
    stage.step([(lease, 1, 8)], ends=[lease])
    (answer,) = stage.told("answer")
    assert answer.drain.remaining == 0
    assert stage.tokens(1) == [7, 8]


@pytest.mark.parametrize("lost", ["hold", "release"])
def test_a_lost_message_is_noticed_by_the_next_heartbeat(lost: str) -> None:
    stage = HoldStage()
    lease = stage.running(1)
    stage.hold(0)
    if lost == "release":
        stage.hold()
    stage.holds()
    expected = [lease] if lost == "hold" else []
    stage.beat([lease], held=[] if lost == "hold" else [lease])
    assert stage.holds() == [expected]
    stage.beat([lease], held=expected)
    assert stage.holds() == []
    assert stage.drops(stage.decode) == []


def test_a_handover_to_a_new_worker_takes_held_sequences_along() -> None:
    stage = PoolStage(partition="mps")
    policy = HoldPolicy()
    stage.coordinator.host.swap(policy)
    lease, old = stage.running(1), stage.decode
    policy.held = (0,)
    stage.clock.advance(0.1)
    stage.round()
    old.draining_s = stage.clock.now()
    policy.held = ()
    stage.clock.advance(0.1)
    stage.round()
    assert sum(m.HasField("hold") for m in stage.transport.worker[old.incarnation]) == 1, "it gets no more work"
    stage.end(old)
    stage.settle()
    assert stage.decode is not old
    assert [a.lease for a in stage.adopts()] == [lease]
    assert not any(m.HasField("hold") for m in stage.transport.worker[stage.decode.incarnation])


def test_a_suspect_that_is_held_lets_others_go_first_and_goes_on_alone() -> None:
    """Sequences that took part in a worker's death run one at a time, held ones not counted."""
    stage = HoldStage()
    leases = [stage.running(ticket) for ticket in (1, 2)]
    stage.die(stage.decode, killed=False)
    stage.succeed()
    assert [a.lease for a in stage.adopts()] == [leases[0]]
    stage.hold(0)
    assert [a.lease for a in stage.adopts()] == [leases[1]]
    stage.holds()
    stage.hold()
    assert stage.holds() == [], "the other suspect has made no progress yet"
    stage.step([(leases[1], 1, 8)])
    stage.act()
    assert stage.holds() == [[]]
    stage.step([(leases[0], 1, 8)])
    assert stage.tokens(1) == stage.tokens(2) == [7, 8]


def test_a_held_suspect_does_not_keep_a_suspected_prompt_from_being_computed() -> None:
    stage = HoldStage()
    stage.running(1)
    stage.die(stage.decode, killed=False)
    stage.submit(2)
    stage.die(stage.prefill, killed=False)
    stage.batches()
    stage.policy.held = (0,)
    stage.act()
    stage.prefill = stage.assign(Role.PREFILL)
    stage.act()
    assert [c.request_id for b in stage.batches() for c in b.chunks] == ["r2"]


# --- preempt --------------------------------------------------------------------------------------------------------


def test_a_decoding_sequence_that_a_plan_preempts_is_dropped_and_computed_again() -> None:
    stage = HoldStage()
    lease = stage.running(1, max_tokens=4)
    stage.step([(lease, 1, 8)])
    stage.preempt(0)
    assert stage.drops(stage.decode) == [lease]
    stage.step([(lease, 2, 9)])  # of a step that was under way
    stage.account.release(lease, stage.decode.holder)
    stage.decode_says(wk.StepDone(dropped=[lease]))
    stage.act()
    (batch,) = stage.batches()
    assert list(batch.chunks[0].tokens)[-2:] == [7, 8]
    stage.prefill_batch(batch, token=9)
    (adopt,) = stage.adopts()
    stage.step([(adopt.lease, 3, 10)], ends=[adopt.lease])
    assert stage.tokens(1) == [7, 8, 9, 10]
    assert stage.all_pages_are_free()
    assert stage.state.metrics.preemptions._value.get() == 1


def test_a_ready_sequence_that_a_plan_preempts_gives_its_pages_up_at_once() -> None:
    stage = HoldStage()
    del stage.state.workers[Role.DECODE]
    stage.submit(1)
    stage.prefill_all()
    del stage.state.workers[Role.PREFILL]
    stage.preempt(0)
    assert stage.all_pages_are_free()
    assert [w.output_tokens for w in stage.coordinator.snapshot().waiting] == [1]
    assert [w.preemptions for w in stage.coordinator.snapshot().waiting] == [1]


def test_heartbeats_after_a_preemption_are_no_reason_to_start_over_again() -> None:
    stage = HoldStage()
    lease = stage.running(1)
    stage.preempt(0)
    stage.beat([lease], held=[], through=1)  # the drop is still on its way
    (batch,) = stage.batches()
    stage.prefill_batch(batch, token=8)
    stage.beat([], held=[], through=1)
    assert stage.batches() == []
    assert stage.tokens(1) == [7, 8]


def test_a_held_sequence_can_be_preempted() -> None:
    stage = HoldStage()
    lease = stage.running(1)
    stage.hold(0)
    stage.policy.held = ()
    stage.preempt(0)
    assert stage.drops(stage.decode) == [lease]
    assert stage.holds() == [[lease], []]
    stage.act()
    (batch,) = stage.batches()
    stage.prefill_batch(batch, token=8)
    assert stage.tokens(1) == [7, 8]


def test_the_gateway_hears_nothing_of_holds_and_preemptions() -> None:
    stage = HoldStage()
    stage.running(1)
    before = len(stage.transport.gateway)
    stage.hold(0)
    stage.hold()
    stage.preempt(0)
    assert len(stage.transport.gateway) == before
