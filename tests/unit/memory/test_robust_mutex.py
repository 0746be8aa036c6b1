"""The critical section over the mutex; what deaths do to it stands in tests/process."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from semipd.memory.errors import AccountBusy, AccountCorrupt, StaleLease
from semipd.memory.robust_mutex import MUTEX_BYTES, CriticalSection, RobustMutex


class Guarded:
    """Something that the mutex guards: broken in the middle of a change, whole before and after."""

    def __init__(self) -> None:
        self._room = ctypes.create_string_buffer(MUTEX_BYTES)
        mutex = RobustMutex(ctypes.addressof(self._room))
        mutex.initialise()
        self.section = CriticalSection(mutex, 5, self.repair)
        self.impatient = CriticalSection(mutex, 0, self.repair)
        self.broken = False
        self.memory_is_short = False

    def repair(self) -> None:
        if self.memory_is_short:
            raise MemoryError
        self.broken = False

    def change(self, error: Exception | None = None) -> None:
        with self.section:
            self.broken = True
            if error is not None:
                raise error
            self.broken = False

    @contextmanager
    def broken_by_another_thread(self) -> Iterator[None]:
        """Breaks it in a thread that has memory neither for the change nor for the repair, and that ends after the
        body."""
        has_failed, may_end = threading.Event(), threading.Event()

        def change() -> None:
            with pytest.raises(MemoryError):
                self.change(MemoryError())
            has_failed.set()
            may_end.wait()

        self.memory_is_short = True
        thread = threading.Thread(target=change)
        thread.start()
        has_failed.wait()
        try:
            yield
        finally:
            may_end.set()
            thread.join()

    def look(self) -> bool:
        with self.section:
            return self.broken


def test_what_an_exception_broke_is_whole_again() -> None:
    guarded = Guarded()
    with pytest.raises(MemoryError):
        guarded.change(MemoryError())
    assert not guarded.look()


def test_a_refusal_is_not_repaired() -> None:
    guarded = Guarded()
    with pytest.raises(StaleLease):
        guarded.change(StaleLease())
    assert guarded.look()


def test_what_could_not_be_repaired_is_nobodys_until_its_breaker_has_ended_and_then_repaired() -> None:
    guarded = Guarded()
    with guarded.broken_by_another_thread():
        guarded.memory_is_short = False
        with pytest.raises(AccountBusy), guarded.impatient:
            pass
    assert not guarded.look()


def test_what_cannot_be_repaired_after_a_death_is_given_up() -> None:
    guarded = Guarded()
    with guarded.broken_by_another_thread():
        pass
    with pytest.raises(MemoryError):
        guarded.look()
    guarded.memory_is_short = False
    with pytest.raises(AccountCorrupt, match="could not be repaired"):
        guarded.look()
