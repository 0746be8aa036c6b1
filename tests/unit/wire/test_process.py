"""A process asks the kernel and the garbage collector for what it says it does."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import weakref
from typing import Any

import pytest

from semipd.wire.process import SLACK_NS, freeze_start_up_objects, sleep_exactly

PR_GET_TIMERSLACK = 30


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has a timer slack")
def test_sleeps_of_the_thread_that_asks_end_in_time() -> None:
    prctl = ctypes.CDLL(None).prctl
    found: list[int] = []

    def ask() -> None:
        sleep_exactly()
        found.append(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0))

    before = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0)
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [SLACK_NS]
    assert prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0) == before


def test_the_collector_no_longer_goes_through_what_is_there_and_what_was_garbage_is_gone() -> None:
    class Ring:
        def __init__(self) -> None:
            self.myself = self

    held: list[Any] = [Ring()]
    lost = weakref.ref(Ring())
    try:
        freeze_start_up_objects()
        assert lost() is None
        assert not any(seen is held[0] for seen in gc.get_objects())
        later = Ring()
        assert any(seen is later for seen in gc.get_objects())
    finally:
        gc.unfreeze()
