"""Taking turns: two phases over one control block, each asked what it may do."""

from __future__ import annotations

import pytest

from semipd.engine.pulse import SilentPulse
from semipd.memory.account import Role
from semipd.memory.control import CONTROL_BYTES, ControlBlock
from semipd.workers.turns import TURN_LIMIT_S, ControlBlockTurns


class Stage:
    def __init__(self, tokens: int = 512) -> None:
        self.now_s = 0.0
        self.control = ControlBlock(memoryview(bytearray(CONTROL_BYTES)))
        self.control.take_turns(tokens)
        self.prefill, self.decode = (
            ControlBlockTurns(self.control, r, lambda: self.now_s, self.rest) for r in (Role.PREFILL, Role.DECODE)
        )

    def rest(self) -> None:
        self.now_s += TURN_LIMIT_S / 4

    def both_busy(self) -> None:
        self.decode.busy(True)
        self.prefill.busy(True)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_who_is_alone_computes_when_it_likes(stage: Stage) -> None:
    stage.decode.busy(True)
    assert stage.decode.mine()
    stage.decode.begin()
    assert stage.decode.mine()


def test_prefill_comes_first_and_the_phases_alternate(stage: Stage) -> None:
    stage.both_busy()
    assert stage.prefill.mine()
    assert not stage.decode.mine()
    for _ in range(2):
        stage.prefill.begin()
        assert not stage.prefill.end(computed=512, following=256)
        assert (stage.prefill.mine(), stage.decode.mine()) == (False, True)
        stage.decode.begin()
        assert not stage.decode.end()
        assert (stage.prefill.mine(), stage.decode.mine()) == (True, False)


def test_prefill_keeps_its_turn_while_the_next_batch_fits_into_it(stage: Stage) -> None:
    stage.both_busy()
    stage.prefill.begin()
    assert stage.prefill.end(computed=200, following=312)
    assert not stage.decode.mine()
    assert not stage.prefill.end(computed=312, following=8)
    assert stage.decode.mine()


def test_who_becomes_busy_waits_for_the_pass_that_is_on_the_device(stage: Stage) -> None:
    stage.decode.busy(True)
    stage.decode.begin()
    stage.prefill.busy(True)
    assert not stage.prefill.mine()
    stage.decode.end()
    assert stage.prefill.mine()
    assert not stage.decode.mine()


def test_a_worker_that_died_in_its_pass_is_waited_for_no_more(stage: Stage) -> None:
    stage.decode.busy(True)
    stage.decode.begin()
    stage.prefill.busy(True)
    stage.control.mark(Role.DECODE, busy=False)  # so does the coordinator
    assert stage.prefill.mine()
    successor = ControlBlockTurns(stage.control, Role.DECODE, lambda: stage.now_s, stage.rest)
    successor.busy(True)
    assert stage.prefill.mine()
    assert not successor.mine()


def test_side_by_side_nobody_waits_nor_after(stage: Stage) -> None:
    stage.both_busy()
    stage.decode.begin()  # and the mode changes while that step is on the device
    stage.control.take_turns(0)
    assert stage.prefill.mine()
    stage.decode.begin()
    stage.control.take_turns(512)
    assert stage.prefill.mine()


def test_the_wait_ends_with_the_turn_of_the_other(stage: Stage) -> None:
    stage.both_busy()
    glances: list[bool] = []

    class EndingPulse(SilentPulse):
        def report(self) -> None:
            glances.append(stage.decode.mine())
            if len(glances) == 3:
                stage.prefill.end(computed=100)

    stage.decode.wait(EndingPulse())
    assert glances == [False] * 3


def test_nobody_waits_for_ever(stage: Stage) -> None:
    stage.both_busy()
    stage.prefill.begin()
    stage.decode.wait(SilentPulse())
    assert TURN_LIMIT_S < stage.now_s < 2 * TURN_LIMIT_S
