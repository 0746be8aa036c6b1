"""Workers that die, hang and start, on a CPU and on a GPU; the processes are played."""

from __future__ import annotations

from typing import Any

import pytest

from semipd.coordinator.quarantine import OVER_S
from semipd.coordinator.recovery import CRASH_STRIKES, KILL_STRIKES
from semipd.coordinator.supervisor import Supervisor
from semipd.coordinator.worker_pool import FAILED_STARTS, START_LIMIT_S
from semipd.memory.account import Role
from semipd.wire.process import EXIT_DEVICE_FAILED
from support.worker_pool import PlayedMps, PoolStage


def on_gpu(**config: Any) -> PoolStage:
    return PoolStage(partition="green", **config)


def strikes(stage: PoolStage) -> list[int]:
    return [s.strikes for entry in stage.state.requests.entries() for s in entry.live.values()]


def test_a_gpu_has_two_spares_and_a_cpu_one() -> None:
    assert on_gpu().roles() == ["decode", "prefill", "spare", "spare"]
    assert PoolStage(partition="none").roles() == ["decode", "prefill", "spare"]
    assert on_gpu(spare_worker=False).roles() == ["decode", "prefill"]


def test_workers_find_the_mps_daemon_by_their_environment() -> None:
    assert on_gpu().children.environments[0] == {"CUDA_MPS_PIPE_DIRECTORY": "/run/mps"}


def test_only_a_worker_that_is_assigned_after_the_first_service_is_a_replacement() -> None:
    stage = on_gpu()
    assert not any(a.replacement for a in stage.assigned().values())
    stage.end(stage.decode)
    stage.round()
    assert [a.replacement for a in stage.assigned().values()] == [False, True]


def test_a_fault_on_the_gpu_replaces_both_workers_once_all_clients_are_gone() -> None:
    stage = on_gpu()
    prefill, decode = stage.prefill, stage.decode
    lease = stage.running(1)
    stage.child(prefill).lingers = True
    stage.end(decode, EXIT_DEVICE_FAILED)
    stage.settle()
    assert Role.DECODE not in stage.state.workers, "MPS lets nobody in while the other one is there"
    stage.end(prefill)
    stage.settle()
    assert stage.decode is not decode
    assert stage.prefill is not prefill, "its context is gone, too"
    (adopt,) = stage.adopts()
    assert adopt.lease == lease
    stage.step([(lease, 1, 8)])
    assert stage.tokens(1) == [7, 8]
    assert stage.roles() == ["decode", "prefill", "spare", "spare"]


def test_a_fault_without_mps_is_one_workers_own() -> None:
    stage = PoolStage(partition="none")
    stage.mps.kind = "off"
    stage.end(stage.decode, EXIT_DEVICE_FAILED)
    stage.round()
    assert stage.child(stage.prefill).code is None


def test_after_a_fault_whatever_was_on_the_device_is_suspected_and_one_suspect_works_at_a_time() -> None:
    stage = on_gpu()
    stage.running(1)
    stage.submit(2)
    stage.end(stage.decode, EXIT_DEVICE_FAILED)
    stage.round()
    stage.round()
    assert strikes(stage) == [CRASH_STRIKES, CRASH_STRIKES]
    stage.settle()
    assert len(stage.adopts()) + len(stage.batches()) == 1


def test_suspects_that_hold_pages_go_before_suspects_that_want_some() -> None:
    """A pool of six pages: two for what was decoding, and a prompt of five that can't have them meanwhile."""
    stage = on_gpu(pages=6)
    lease = stage.running(1, prompt=20, max_tokens=2)
    stage.submit(2, prompt=80, max_tokens=1)
    assert len(stage.batches()) == 1
    stage.end(stage.decode, EXIT_DEVICE_FAILED)
    stage.settle()
    assert stage.batches() == []
    (adopt,) = stage.adopts()
    stage.step([(adopt.lease, 1, 8)], ends=[lease])
    stage.round()
    (batch,) = stage.batches()
    stage.prefill_batch(batch)
    assert stage.tokens(2) == [7]


def test_a_request_that_faults_the_gpu_twice_is_ended_whichever_worker_is_seen_to_die_first() -> None:
    stage = on_gpu()
    leases = {ticket: stage.running(ticket) for ticket in (1, 2, 3)}
    stage.submit(4, prompt=24)
    for _ in range(30):
        if any(c.request_id == "r4" for batch in stage.batches() for c in batch.chunks):
            stage.end(stage.decode, EXIT_DEVICE_FAILED)
            stage.settle()
        for adopt in stage.adopts():
            stage.step([(adopt.lease, len(adopt.continuation.output), 50)])
        stage.round()
    assert stage.reasons() == {4: "INTERNAL"}
    assert all(stage.state.requests.by_lease(lease) for lease in leases.values())


def test_the_mps_daemons_death_replaces_both_workers_when_it_answers_again() -> None:
    stage = on_gpu()
    assert isinstance(stage.mps, PlayedMps)
    stage.running(1)
    stage.mps.died = True
    stage.settle()
    assert stage.roles() == ["spare", "spare"], "spares have never opened the device"
    assert strikes(stage) == [KILL_STRIKES]
    stage.mps.answers = True
    stage.settle()
    assert stage.roles() == ["decode", "prefill", "spare", "spare"]
    assert len(stage.adopts()) == 1


def test_a_worker_that_does_not_get_ready_is_replaced_after_the_start_limit_and_not_before() -> None:
    stage = on_gpu()
    stage.end(stage.decode)
    stage.round()
    slow = stage.decode
    stage.clock.advance(START_LIMIT_S)
    stage.round()
    assert stage.child(slow).code is None
    stage.clock.advance(1.0)
    stage.round()
    assert stage.child(slow).code is not None
    stage.round()
    stage.clock.advance(1.0)
    stage.settle()
    assert stage.decode is not slow
    assert stage.decode.ready


def test_spares_that_die_end_no_request_while_both_workers_serve() -> None:
    stage = on_gpu()
    stage.running(1)
    for _ in range(FAILED_STARTS + 1):
        for title, _, incarnation in list(stage.pool.processes()):
            if title == "spare":
                stage.children.started[incarnation].code = 1
        stage.round()
        stage.clock.advance(60.0)
        stage.round()
    assert stage.reasons() == {}


@pytest.mark.parametrize("successor", [True, False], ids=["a fresh worker is ready", "a second has passed"])
def test_pages_of_a_dead_worker_stay_in_quarantine_until_its_work_is_over(successor: bool) -> None:
    stage = on_gpu(spare_worker=False)
    stage.running(1)
    stage.coordinator.on_gateway_lost(b"gateway.0")  # nobody wants the pages any more
    stage.end(stage.decode)
    stage.round()
    held = stage.account.counts()
    assert held.quarantined > 0
    assert held.owned == 0
    if successor:
        stage.clock.advance(0.3)
        stage.settle()
    else:
        stage.clock.advance(OVER_S)
        stage.round()
    assert stage.all_pages_are_free()


def test_a_request_cancelled_after_its_workers_death_leaves_its_pages_in_quarantine_too() -> None:
    stage = on_gpu()
    stage.running(1)
    stage.end(stage.decode)
    stage.round()
    stage.coordinator.on_gateway_lost(b"gateway.0")
    assert stage.account.counts().quarantined > 0
    stage.clock.advance(OVER_S)
    stage.round()
    assert stage.all_pages_are_free()


def test_a_dead_workers_busy_word_is_cleared() -> None:
    stage = on_gpu()
    stage.control.mark(Role.DECODE, busy=True)
    stage.end(stage.decode)
    stage.round()
    assert not stage.control.busy(Role.DECODE)


class Listener:
    """A console that keeps what it is told of graphs."""

    def __init__(self) -> None:
        self.captured: list[tuple[int, int]] = []

    def capturing(self, done: int, total: int) -> None:
        self.captured.append((done, total))

    def loading(self, done: int, total: int) -> None: ...
    def note(self, text: str) -> None: ...
    def ready(self, address: str) -> None: ...


def watched(stage: PoolStage) -> tuple[Supervisor, Listener]:
    console = Listener()
    supervisor = Supervisor(
        stage.state,
        stage.children,
        stage.pool,
        stage.coordinator,
        stage.partition,
        stage.mps,
        console,
        lambda _port: None,
    )
    return supervisor, console


def capture(stage: PoolStage, incarnation: int, done: int, total: int) -> None:
    stage.children.started[incarnation].said.append({"event": "capturing", "done": done, "total": total})


def test_while_a_server_starts_the_console_is_told_how_many_graphs_both_workers_have_captured() -> None:
    stage = PoolStage(partition="green", settled=False)
    supervisor, console = watched(stage)
    stage.hello()
    supervisor.poll()
    first, second = stage.assigned()
    capture(stage, first, 1, 20)
    supervisor.poll()
    capture(stage, first, 2, 20)
    capture(stage, second, 1, 10)
    capture(stage, second, 3, 10)
    supervisor.poll()
    supervisor.poll()
    assert console.captured == [(1, 20), (5, 30)]


def test_of_graphs_that_are_captured_after_the_server_has_served_nothing_is_told() -> None:
    stage = on_gpu()
    supervisor, console = watched(stage)
    stage.end(stage.decode)
    supervisor.poll()
    supervisor.poll()
    for incarnation in stage.assigned():
        capture(stage, incarnation, 1, 20)
    supervisor.poll()
    assert console.captured == []


def test_policies_know_what_the_decode_worker_pads_its_steps_to_as_it_said_last() -> None:
    stage = on_gpu()
    assert stage.coordinator.snapshot().limits.decode_capture_sizes == ()
    stage.ready(stage.prefill.incarnation, step_rows=[7])
    stage.ready(stage.decode.incarnation, step_rows=[64, 128])
    assert stage.coordinator.snapshot().limits.decode_capture_sizes == (64, 128)
    stage.end(stage.decode)
    stage.round()
    assert stage.coordinator.snapshot().limits.decode_capture_sizes == (64, 128), "nobody says otherwise yet"
    stage.hello()
    stage.round()
    stage.ready(stage.decode.incarnation, step_rows=[64, 96, 128])
    assert stage.coordinator.snapshot().limits.decode_capture_sizes == (64, 96, 128)
