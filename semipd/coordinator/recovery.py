"""Takes back the work of workers that died, and finds requests that kill their worker.

No request loses anything: the resident keeps the KV, the account knows which lease has which pages, and the journal
knows what the client has. Only a request that kills its worker again and again is ended. To find it among the others,
sequences that took part in a death run one at a time until they have made progress; until then their `strikes` are
above 0.
"""

from __future__ import annotations

import structlog

from semipd.coordinator.decode_dispatch import DecodeDispatcher
from semipd.coordinator.prefill_dispatch import PrefillDispatcher
from semipd.coordinator.requests import SequenceState
from semipd.coordinator.state import CoordinatorState, Worker
from semipd.core.errors import InternalError
from semipd.memory.account import COORDINATOR, Role

log = structlog.get_logger()

CRASH_STRIKES = 3
"""Strikes where the worker caused its own end: a fault in a kernel, an error that it could not handle, a stall."""
KILL_STRIKES = 1
"""Strikes where the worker was killed from outside (SIGKILL, SIGTERM): hardly the request's fault, but the kernel's
out-of-memory killer looks the same."""
STRIKES_OUT = 6
"""Strikes at which a request is ended: the second crash, or the sixth kill, without a token between."""


def on_worker_died(
    state: CoordinatorState, worker: Worker, prefill: PrefillDispatcher, decode: DecodeDispatcher, *, killed: bool
) -> None:
    """Takes back what a dead worker had. To be called once its process is known to be gone.

    `killed`: it was ended from outside.
    """
    if state.account is None:
        return
    leases = state.pages.reassign(worker.holder, COORDINATOR)
    if state.control is not None:
        state.control.mark(worker.role, busy=False)
    if state.on_gpu:
        state.quarantine.add(worker.holder, leases, state.clock.now())
    else:
        state.pages.clear_quarantine(worker.holder)
    lost = _take_back(state, worker, prefill, decode)
    for sequence in lost:
        strike(state, sequence, KILL_STRIKES if killed else CRASH_STRIKES)
    log.warning(
        "worker lost",
        role=worker.role.name.lower(),
        incarnation=worker.incarnation,
        killed=killed,
        sequences=len(lost),
        leases=len(leases),
    )


def on_worker_drained(
    state: CoordinatorState, worker: Worker, prefill: PrefillDispatcher, decode: DecodeDispatcher
) -> None:
    """Takes back what a drained worker had, for its successor. It has answered for everything and touches nothing any
    more."""
    if state.account is None:
        return
    state.pages.reassign(worker.holder, COORDINATOR)
    if state.control is not None:
        state.control.mark(worker.role, busy=False)
    handed_on = _take_back(state, worker, prefill, decode)
    log.info("worker drained", role=worker.role.name.lower(), incarnation=worker.incarnation, sequences=len(handed_on))


def _take_back(
    state: CoordinatorState, worker: Worker, prefill: PrefillDispatcher, decode: DecodeDispatcher
) -> list[SequenceState]:
    """Returns the sequences that were with the worker; they can go to another one now."""
    found = prefill.on_worker_lost(worker)
    if worker.role is Role.DECODE:
        found += decode.on_worker_lost()
    # All leases that are the coordinator's now, reassigned or handed over by a worker that resigned. Those of sequences
    # that have ended are released.
    for lease in state.pages.reassign(COORDINATOR, COORDINATOR):
        if state.requests.by_lease(lease) is None:
            state.release(lease)
    return found


def strike(state: CoordinatorState, sequence: SequenceState, strikes: int) -> None:
    """Adds strikes to a sequence, and ends its request if they are too many."""
    sequence.strikes += strikes
    if sequence.strikes >= STRIKES_OUT:
        request_id = sequence.entry.request.request_id
        log.error("a request kills its worker and is ended", request_id=request_id)
        state.fail(sequence.entry, InternalError("the request made its worker fail twice and was ended"))
