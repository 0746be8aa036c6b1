"""The control block: what one process writes another reads, and words don't disturb each other."""

from __future__ import annotations

import mmap

from semipd.memory.account import Role
from semipd.memory.control import CONTROL_BYTES, ControlBlock, PublishedSplit


def two_views() -> tuple[ControlBlock, ControlBlock]:
    shared = mmap.mmap(-1, CONTROL_BYTES)
    return ControlBlock(memoryview(shared)), ControlBlock(memoryview(shared))


def test_nothing_is_said_at_first() -> None:
    block, _ = two_views()
    assert block.split() == PublishedSplit(0, 0, 0)
    assert not block.busy(Role.PREFILL)
    assert not block.busy(Role.DECODE)


def test_a_split_is_seen_by_the_other() -> None:
    one, other = two_views()
    one.set_split(PublishedSplit(68, 64, 7), decided_ns=123)
    assert other.split() == PublishedSplit(68, 64, 7)
    assert other.decided_ns() == 123
    assert other.split().of(Role.PREFILL.phase) == 68
    assert other.split().of(Role.DECODE.phase) == 64


def test_busy_words_are_apart() -> None:
    one, other = two_views()
    one.set_split(PublishedSplit(132, 132, 2**32 - 1), decided_ns=2**62)
    one.mark(Role.DECODE, busy=True)
    assert other.busy(Role.DECODE)
    assert not other.busy(Role.PREFILL)
    one.mark(Role.PREFILL, busy=True)
    one.mark(Role.DECODE, busy=False)
    assert not other.busy(Role.DECODE)
    assert other.busy(Role.PREFILL)
    assert other.split() == PublishedSplit(132, 132, 2**32 - 1)


def test_turns() -> None:
    one, other = two_views()
    assert not other.turns()
    one.take_turns(3)
    one.give_turn(Role.DECODE)
    assert other.turns()
    assert other.has_turn(Role.DECODE)
    assert not other.has_turn(Role.PREFILL)
    one.take_turns(0)
    assert not other.turns()
