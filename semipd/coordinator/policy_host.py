"""Hosts the policy: asks it, checks its answer, and puts the fallback in its place when it fails."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import TypeVar

import structlog

from semipd.core.plan import Admission, Plan
from semipd.core.snapshot import Snapshot, WaitingSequence
from semipd.policies.builtin.fcfs import Fcfs
from semipd.policies.contract import Broken, Policy, ask_admission, ask_plan

log = structlog.get_logger()

T = TypeVar("T")

Budget = Callable[[float], AbstractContextManager[None]]
"""Makes a context manager for a number of seconds: it ends its body with PolicyOverrun when these are used up. The
implementation says what it counts."""

PATIENCE = 2
"""The time on the clock after which a call ends, in budgets. Between one budget and this many, it matters whether the
policy computed or whether the operating system gave the processor to another process."""
RING_S = 0.01
"""Most seconds between two looks at a policy whose first budget has gone by."""


class PolicyOverrun(BaseException):
    """Says that the policy's time is over, and how. It is no Exception, so that a policy's own `except Exception` does
    not catch it."""


@contextmanager
def alarm(
    seconds: float,
    computed: Callable[[], float] = time.thread_time,
    passed: Callable[[], float] = time.monotonic,
) -> Iterator[None]:
    """Ends its body with PolicyOverrun when the thread has computed for `seconds`, or when PATIENCE times `seconds`
    have passed, whatever it did meanwhile: it may sleep, or wait for something. A thread that is off the CPU for less
    than that is not at fault.

    `computed` and `passed` are clocks in seconds: the thread's processor time, and the world's time. It uses SIGALRM,
    and hence works in the main thread only. The first signal comes after `seconds`. The next ones, RING_S or less
    apart, look again, and raise again in case that the policy caught a PolicyOverrun. One of them falls on the end of
    PATIENCE.
    """
    computed_at_start, passed_at_start = computed(), passed()

    def look(_signal: int, _frame: FrameType | None) -> None:
        if computed() - computed_at_start >= seconds:
            raise PolicyOverrun(f"computed for {seconds * 1000:g} ms")
        if passed() - passed_at_start >= PATIENCE * seconds:
            raise PolicyOverrun(f"did not answer within {PATIENCE * seconds * 1000:g} ms")

    previous = signal.signal(signal.SIGALRM, look)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds / math.ceil(seconds / RING_S))
        yield
    finally:
        disarmed = False
        while not disarmed:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, previous)
                disarmed = True
            except PolicyOverrun:
                continue  # the signal came while it was being switched off; outside the policy's call none may come


class PolicyHost:
    """Holds the policy that decides, and asks it under a time budget.

    `on_failure(name, why)` hears of each policy that was replaced by the fallback.
    """

    def __init__(self, policy: Policy, budget_s: float, on_failure: Callable[[str, str], None], budget: Budget = alarm):
        self._policy = policy
        self._budget_s = budget_s
        self._budget = budget
        self._on_failure = on_failure

    @property
    def name(self) -> str:
        return self._policy.name

    def swap(self, policy: Policy) -> str:
        """Puts a policy to work and returns the name of the one before."""
        previous, self._policy = self._policy, policy
        return previous.name

    def admit(self, snapshot: Snapshot, sequence: WaitingSequence) -> Admission:
        """Returns what the policy says to a request; where the policy fails, the request is accepted."""
        answer = self._guarded(lambda: ask_admission(self._policy, snapshot, sequence))
        return answer if answer is not None else Admission()

    def plan(self, snapshot: Snapshot) -> Plan:
        """Returns a plan that keeps the contract: the policy's, or where that fails, the fallback's."""
        plan = self._guarded(lambda: ask_plan(self._policy, snapshot))
        return plan if plan is not None else ask_plan(self._policy, snapshot)

    def _guarded(self, call: Callable[[], T]) -> T | None:
        """Returns what the call returns; None: the policy failed, and the fallback has taken its place."""
        try:
            with self._budget(self._budget_s):
                return call()
        except PolicyOverrun as overrun:
            why = str(overrun)
        except Broken as error:
            why = str(error)
        except Exception as error:  # a plug-in may raise anything at all
            why = f"raised {error!r}"
            log.warning("policy raised", policy=self._policy.name, exc_info=True)
        failed = self.swap(Fcfs())
        log.error("policy replaced by the fallback", policy=failed, why=why, fallback=self.name)
        self._on_failure(failed, why)
        return None
