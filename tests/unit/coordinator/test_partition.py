from __future__ import annotations

import pytest

from semipd.core.partition import FULL, Mode, Shares
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.control import PublishedSplit
from support.stage import Stage

H200_SMS = 132


def assigned(stage: Stage, role: wk.WorkerRole) -> wk.Appoint:
    appoint = wk.Appoint(role=role)
    stage.partition.fill_appoint(appoint)
    return appoint


def test_without_a_partition_both_phases_have_everything_whatever_is_asked() -> None:
    stage = Stage()
    assert stage.partition.set(Shares(30, 70)) == FULL
    assert stage.told_shares() == []


def test_a_change_is_told_to_both_workers_once() -> None:
    stage = Stage(cpus=4)
    assert stage.partition.set(Shares(25, 75)) == Shares(25, 75)
    stage.partition.set(Shares(25, 75))
    assert [(len(s.cpus), s.percent) for s in stage.told_shares()] == [(1, 25.0), (3, 75.0)]
    assert list(assigned(stage, wk.WORKER_ROLE_DECODE).cpus) == [1, 2, 3]


def test_a_policy_that_asks_for_the_same_again_leaves_alone_what_an_operator_set() -> None:
    stage = Stage(cpus=4)
    stage.partition.request(Shares(50, 50))
    stage.partition.set(Shares(25, 75))
    stage.partition.request(Shares(50, 50))
    assert stage.state.shares == Shares(25, 75)
    stage.partition.request(Shares(75, 25))
    assert stage.state.shares == Shares(75, 25)


def test_green_has_nothing_to_divide_before_the_device_is_known_and_grants_what_was_asked_for_then() -> None:
    stage = Stage(partition="green", sms=0)
    assert stage.partition.set(Shares(50, 50)) == FULL
    assert stage.control.split() == PublishedSplit(0, 0)
    stage.partition.device_known(H200_SMS)
    assert stage.control.split() == PublishedSplit(68, 64)
    assert stage.state.shares == Shares(100 * 68 / 132, 100 * 64 / 132)


def test_green_writes_the_split_with_the_moment_of_the_decision_and_sends_nothing() -> None:
    stage = Stage(partition="green")
    stage.clock.advance(1.5)
    stage.partition.set(Shares(75, 25))
    assert stage.control.split() == PublishedSplit(100, 32, 1)
    assert stage.control.decided_ns() == 101_500_000_000
    stage.partition.set(Shares(76, 24))
    assert stage.control.split().change == 1, "the same SMs: nothing changed"
    assert not any(stage.transport.worker.values())


def test_a_new_resident_has_a_new_control_block_and_the_split_is_written_again() -> None:
    stage = Stage(partition="green")
    stage.partition.set(Shares(75, 25))
    stage.new_control()
    stage.partition.device_known(H200_SMS)
    assert stage.control.split() == PublishedSplit(100, 32, 1)


def test_the_delay_of_a_split_is_a_metric_where_there_are_multiprocessors() -> None:
    stage = Stage(partition="green")
    for sms in (64, 0):
        applied = wk.SharesApplied(change=1, delay_s=0.0002, sms=sms)
        stage.coordinator.on_worker_message(stage.decode, wk.FromWorker(shares_applied=applied))
    counted = stage.state.metrics.registry.get_sample_value("semipd:split_delay_seconds_count", {"role": "decode"})
    assert counted == 1


@pytest.mark.parametrize(
    ("partition", "modes"),
    [
        ("none", {Mode.SPLIT, Mode.MIXED}),
        ("cores", {Mode.SPLIT, Mode.MIXED}),
        ("green", set(Mode)),
        ("mps", {Mode.SPLIT}),
    ],
)
def test_what_the_device_can_do_besides_a_split(partition: str, modes: set[Mode]) -> None:
    assert Stage(partition=partition, cpus=2).partition.modes == modes


def test_only_turns_are_the_control_blocks_matter() -> None:
    stage = Stage(partition="green")
    told = []
    for mode in (Mode.TURNS, Mode.MIXED, Mode.SPLIT):
        stage.partition.change_mode(mode)
        told.append((stage.state.mode, stage.control.turns()))
    assert told == [(Mode.TURNS, True), (Mode.MIXED, False), (Mode.SPLIT, False)]


def test_prefills_turn_is_as_long_as_the_plan_says() -> None:
    stage = Stage(partition="green")
    told = []
    for step_tokens in (None, 512, 1024, 1024, None):
        stage.partition.change_mode(Mode.TURNS, step_tokens)
        told.append(stage.control.turn_tokens())
    assert told == [1, 512, 1024, 1024, 1], "one batch it may always have"
    stage.partition.change_mode(Mode.MIXED, 512)
    assert not stage.control.turns()


def test_mps_is_for_life_and_in_whole_percents() -> None:
    stage = Stage(partition="mps")
    assert stage.partition.set(Shares(71.6, 2)) == Shares(72, 5)
    assert assigned(stage, wk.WORKER_ROLE_PREFILL).active_thread_percentage == 72
    assert assigned(stage, wk.WORKER_ROLE_DECODE).active_thread_percentage == 5
    assert stage.told_shares() == []


@pytest.mark.parametrize(
    ("partition", "cpus", "decode"),
    [
        ("none", 4, [100.0]),
        ("cores", 1, [100.0]),
        ("cores", 4, [25.0, 50.0, 75.0, 100.0]),
        ("mps", 4, [13.0, 25.0, 38.0, 50.0, 63.0, 75.0, 100.0]),
        ("green", 4, [100 * n / H200_SMS for n in (16, 32, 48, 64, 80, 96, 132)]),
    ],
)
def test_policies_see_the_splits_that_the_back_end_can_grant(partition: str, cpus: int, decode: list[float]) -> None:
    stage = Stage(partition=partition, cpus=cpus)
    limits = stage.coordinator.snapshot().limits
    assert [split.decode for split in limits.splits] == pytest.approx(decode)
    assert limits.splits[-1] == FULL
    for split in limits.splits:
        assert stage.partition.set(split) == split, "and it grants them"


def test_a_gpu_that_the_resident_has_not_opened_yet_has_no_splits() -> None:
    stage = Stage(partition="green", sms=0)
    assert stage.coordinator.snapshot().limits.splits == (FULL,)
    stage.partition.device_known(64)
    limits = stage.coordinator.snapshot().limits
    assert limits.sms == 64
    assert [split.decode for split in limits.splits] == [12.5, 25.0, 37.5, 50.0, 62.5, 75.0, 100.0]
