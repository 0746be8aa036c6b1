"""What a process asks the kernel for."""

from __future__ import annotations

import ctypes
import sys
import threading

import pytest

from semipd.wire.process import SLACK_NS, sleep_exactly

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
