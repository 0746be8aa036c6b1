"""What the death of a worker means for the requests that it had.

Nobody loses anything: the resident keeps the KV, the account knows whose pages are whose, and the journal knows what
the client has. Only a request that kills its worker again and again is ended, and to find it among the others,
sequences that took part in a death run one at a time until they have made progress (`strikes` is above 0 till then).
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
"""The worker died by its own doing: a fault in a kernel, an error that it could not handle, a stall."""
KILL_STRIKES = 1
"""It was killed from outside (SIGKILL, SIGTERM): hardly the request's fault, but the kernel's out-of-memory killer
looks the same."""
OUT = 6
"""The second crash, or the sixth kill, without a token between: the request is ended."""


def worker_died(
    state: CoordinatorState, worker: Worker, prefill: PrefillDispatcher, decode: DecodeDispatcher, *, killed: bool
) -> None:
    """To be called once the process is known to be gone."""
    if state.account is None:
        return
    seized = state.pages.reassign(worker.holder, COORDINATOR)
    if state.control is not None:
        state.control.mark(worker.role, busy=False)
    if state.on_gpu:
        state.quarantine.raise_(worker.holder, seized, state.clock.now())
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
        leases=len(seized),
    )


def worker_retired(
    state: CoordinatorState, worker: Worker, prefill: PrefillDispatcher, decode: DecodeDispatcher
) -> None:
    """It has answered for everything and touches nothing any more. What it had is its successor's, at once."""
    if state.account is None:
        return
    state.pages.reassign(worker.holder, COORDINATOR)
    if state.control is not None:
        state.control.mark(worker.role, busy=False)
    handed_on = _take_back(state, worker, prefill, decode)
    log.info("worker retired", role=worker.role.name.lower(), incarnation=worker.incarnation, sequences=len(handed_on))


def _take_back(
    state: CoordinatorState, worker: Worker, prefill: PrefillDispatcher, decode: DecodeDispatcher
) -> list[SequenceState]:
    """The sequences that were with it; those can go to another now."""
    found = prefill.worker_lost(worker)
    if worker.role is Role.DECODE:
        found += decode.worker_lost()
    # Of all leases that are ours now, whether they were seized or a worker that resigned has handed them over.
    for lease in state.pages.reassign(COORDINATOR, COORDINATOR):
        if state.requests.by_lease(lease) is None:
            state.release(lease)
    return found


def strike(state: CoordinatorState, sequence: SequenceState, strikes: int) -> None:
    sequence.strikes += strikes
    if sequence.strikes >= OUT:
        request_id = sequence.entry.request.request_id
        log.error("a request kills its worker and is ended", request_id=request_id)
        state.end(sequence.entry, InternalError("the request made its worker fail twice and was ended"))
