"""What an answer of a policy must keep to, whatever the policy is: the server and the test kit hold it to the same."""

from __future__ import annotations

from collections import Counter

from semipd.core.plan import Admission, AdmitInput, Order, OrderInput, PlaceInput, Plan
from semipd.core.snapshot import Snapshot, WaitingSequence
from semipd.policies.contract import Policy


class Broken(AssertionError):
    """The policy breaks its contract; the message says how."""


def check_admission(answer: Admission) -> None:
    """Raises Broken."""
    if not isinstance(answer, Admission):
        raise Broken(f"admit returned {type(answer).__name__}, not Admission")


def check_order(order: Order, snapshot: Snapshot) -> None:
    """Raises Broken: it names what does not wait, or something twice."""
    if not isinstance(order, Order):
        raise Broken(f"order returned {type(order).__name__}, not Order")
    waiting = {w.sequence for w in snapshot.waiting}
    for sequence, times in Counter(order.sequences).items():
        if sequence not in waiting:
            raise Broken(f"order names sequence {sequence}, which does not wait")
        if times > 1:
            raise Broken(f"order names sequence {sequence} {times} times")


def check_plan(plan: Plan, snapshot: Snapshot) -> None:
    """Raises Broken where the plan is not one that the server would follow (see `Plan`)."""
    if not isinstance(plan, Plan):
        raise Broken(f"place returned {type(plan).__name__}, not Plan")
    if plan.mode not in snapshot.limits.modes:
        raise Broken(f"mode {plan.mode.value!r} is not one of the engine's")
    if plan.step_tokens is not None and plan.step_tokens < 1:
        raise Broken(f"step_tokens is {plan.step_tokens}; at least 1, or None")
    if plan.decode_limit is not None and plan.decode_limit < 1:
        raise Broken(f"decode_limit is {plan.decode_limit}; at least 1, or None")
    waiting = {w.sequence: w for w in snapshot.waiting}
    needed = 0
    for chunk in plan.prefill:
        needed += _pages(waiting.pop(chunk.sequence, None), chunk.sequence, chunk.tokens, snapshot)
    if needed > snapshot.pages.free:
        raise Broken(f"the batch needs {needed} pages and {snapshot.pages.free} are free")
    tokens = sum(chunk.tokens for chunk in plan.prefill)
    if tokens > snapshot.limits.max_batch_tokens:
        raise Broken(f"{tokens} prompt tokens in one batch; at most {snapshot.limits.max_batch_tokens}")


def _pages(waits: WaitingSequence | None, number: int, tokens: int, snapshot: Snapshot) -> int:
    """Pages that a chunk needs beyond those that its sequence has."""
    if waits is None:
        raise Broken(f"sequence {number} is planned twice or does not wait")
    if waits.in_flight_tokens:
        raise Broken(f"sequence {number} is planned while a part of it is with the prefill worker")
    if not 0 < tokens <= waits.remaining_tokens:
        raise Broken(f"a chunk of {tokens} tokens for sequence {number}, which has {waits.remaining_tokens} left")
    computed, pages = waits.computed_tokens, snapshot.pages
    return pages.pages_for(computed + tokens) - pages.pages_for(computed)


def asked(policy: Policy, snapshot: Snapshot) -> Plan:
    """`order`, then `place`, both checked."""
    order = policy.order(OrderInput(snapshot))
    check_order(order, snapshot)
    plan = policy.place(PlaceInput(snapshot, order))
    check_plan(plan, snapshot)
    return plan


def admitted(policy: Policy, snapshot: Snapshot, sequence: WaitingSequence) -> Admission:
    """`admit`, checked. A refusal says why."""
    answer = policy.admit(AdmitInput(snapshot, sequence))
    check_admission(answer)
    if not answer.accept and not answer.why:
        raise Broken("a request is refused without a word why")
    return answer
