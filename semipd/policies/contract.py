"""Defines what a policy is and what must hold for its answers.

A policy sees a `Snapshot` of the server and answers with a `Plan`: which prompts run now, in which chunks, and on which
share of the device. Snapshot and plan are immutable. A policy does no I/O and reads no clock (`snapshot.now_s` is the
time), so the same object runs in the server, in the simulator and in tests. It may remember what it saw.

The server guards every call: a policy that raises, runs longer than its time budget or returns a plan that breaks
the contract is replaced by the fallback (`fcfs`), which is logged and exported. The server, the simulator and the test
kit all ask a policy through `ask_plan`, hence by the same rules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from semipd.core.errors import ConfigError
from semipd.core.partition import Mode
from semipd.core.plan import Admission, Plan
from semipd.core.snapshot import Limits, SequenceId, Snapshot, WaitingSequence
from semipd.policies.policy_options import PolicyOptions


class Policy(ABC):
    """The base of all policies. Subclass it, name it, and register it under the entry point group `semipd.policies`.

    A policy that has options sets `Options` to a subclass of `PolicyOptions`, and annotates `options` with it, so that
    a type checker knows its fields. An `__init__` of its own takes `options=None` and hands it to this one.
    """

    name: ClassVar[str]
    Options: ClassVar[type[PolicyOptions]] = PolicyOptions
    """The class of its options. The base itself has none."""
    options: PolicyOptions

    def __init__(self, options: PolicyOptions | None = None) -> None:
        """Keeps `options` as an attribute; None: the defaults. Raises ConfigError where they are not of `Options`."""
        if options is None:
            options = self.Options()
        elif not isinstance(options, self.Options):
            raise ConfigError(
                f"{type(self).__name__} takes its options as {self.Options.__name__}(...), not as "
                f"{type(options).__name__}; semipd.policies.registry.make_policy reads them from strings"
            )
        self.options = options

    def admit(self, snapshot: Snapshot, sequence: WaitingSequence) -> Admission:
        """Accepts or refuses a request that has just arrived; `sequence` is not yet in `snapshot.waiting`.

        Called once for each request, before it is queued. This default accepts; a full queue is the server's matter.
        """
        return Admission()

    @abstractmethod
    def plan(self, snapshot: Snapshot) -> Plan:
        """Returns what to run now. `Plan` says what its fields mean, `check_plan` what must hold.

        Called whenever a prefill batch can be given out, and every 20 ms. The server does not always use `prefill`: it
        also asks while it has no room for another batch. The next snapshot shows what was given out.
        """


class Broken(AssertionError):
    """A policy has broken its contract; the message says how."""


def ask_plan(policy: Policy, snapshot: Snapshot) -> Plan:
    """Returns the plan of a policy, in a mode that the engine has. Raises Broken where it breaks the contract."""
    plan = policy.plan(snapshot)
    if not isinstance(plan, Plan):
        raise Broken(f"plan returned {type(plan).__name__}, not Plan")
    plan = in_supported_mode(plan, snapshot.limits)
    check_plan(plan, snapshot)
    return plan


def ask_admission(policy: Policy, snapshot: Snapshot, sequence: WaitingSequence) -> Admission:
    """Returns what a policy says to a request that has arrived. Raises Broken where that is no Admission."""
    answer = policy.admit(snapshot, sequence)
    if not isinstance(answer, Admission):
        raise Broken(f"admit returned {type(answer).__name__}, not Admission")
    return answer


def in_supported_mode(plan: Plan, limits: Limits) -> Plan:
    """Returns the plan with `Mode.SPLIT` in place of a mode that the engine does not have, else as it is.

    A policy may hence plan any mode. Its shares then count, so it gives those that it wants side by side.
    """
    return plan if plan.mode in limits.modes else replace(plan, mode=Mode.SPLIT)


def check_plan(plan: Plan, snapshot: Snapshot) -> None:
    """Raises Broken where the plan is not one that the server can follow.

    Only sequences that wait and have nothing with the prefill worker are planned, each once, and with at most the
    tokens that are left. All chunks together need at most the free pages and have at most `limits.max_batch_tokens`
    tokens. Only running sequences are held back or preempted, each once, and none is both.
    """
    if plan.mode not in snapshot.limits.modes:
        raise Broken(f"mode {plan.mode.value!r} is not one of the engine's")
    if plan.step_tokens is not None and plan.step_tokens < 1:
        raise Broken(f"step_tokens is {plan.step_tokens}; at least 1, or None")
    if plan.decode_limit is not None and plan.decode_limit < 1:
        raise Broken(f"decode_limit is {plan.decode_limit}; at least 1, or None")
    if plan.prefill:
        _check_prefill(plan, snapshot)
    if plan.hold or plan.preempt:
        _check_running(plan, snapshot)


def _check_prefill(plan: Plan, snapshot: Snapshot) -> None:
    waiting = {w.sequence: w for w in snapshot.waiting}
    _check_once("prefill", (chunk.sequence for chunk in plan.prefill))
    needed = 0
    for chunk in plan.prefill:
        needed += _pages(waiting.get(chunk.sequence), chunk.sequence, chunk.tokens, snapshot)
    if needed > snapshot.pages.free:
        raise Broken(f"the batch needs {needed} pages and {snapshot.pages.free} are free")
    tokens = sum(chunk.tokens for chunk in plan.prefill)
    if tokens > snapshot.limits.max_batch_tokens:
        raise Broken(f"{tokens} prompt tokens in one batch; at most {snapshot.limits.max_batch_tokens}")


def _pages(waits: WaitingSequence | None, number: SequenceId, tokens: int, snapshot: Snapshot) -> int:
    """Returns the pages that a chunk needs beyond those that its sequence has."""
    if waits is None:
        raise Broken(f"prefill names sequence {number}, which does not wait")
    if waits.in_flight_tokens:
        raise Broken(f"sequence {number} is planned while a part of it is with the prefill worker")
    if not 0 < tokens <= waits.remaining_tokens:
        raise Broken(f"a chunk of {tokens} tokens for sequence {number}, which has {waits.remaining_tokens} left")
    computed, pages = waits.computed_tokens, snapshot.pages
    return pages.pages_for(computed + tokens) - pages.pages_for(computed)


def _check_running(plan: Plan, snapshot: Snapshot) -> None:
    running = {r.sequence for r in snapshot.running}
    _check_once("preempt", plan.preempt)
    for where, named in (("hold", plan.hold), ("preempt", plan.preempt)):
        for number in named:
            if number not in running:
                raise Broken(f"{where} names sequence {number}, which does not run")
    for number in plan.preempt:
        if number in plan.hold:
            raise Broken(f"sequence {number} is to be held back and to be preempted")


def _check_once(where: str, named: Iterable[SequenceId]) -> None:
    for number, times in Counter(named).items():
        if times > 1:
            raise Broken(f"{where} names sequence {number} {times} times")
