"""What the death of a worker means for the requests that it had.

Nobody loses anything: the resident keeps the KV, the account knows whose pages are whose, and the journal knows what
the client has. Only a request that kills its worker again and again is ended, and to find it among the others,
sequences that took part in a death run one at a time until they have made progress (`strikes` is above 0 till then).
"""

from __future__ import annotations

import structlog

from semipd.coordinator.book import Sequence
from semipd.coordinator.decode_desk import DecodeDesk
from semipd.coordinator.floor import COORDINATOR, Floor, Worker
from semipd.coordinator.prefill_desk import PrefillDesk
from semipd.core.errors import InternalError
from semipd.memory.account import Role

log = structlog.get_logger()

CRASH_STRIKES = 3
"""The worker died by its own doing: a fault in a kernel, an error that it could not handle, a stall."""
KILL_STRIKES = 1
"""It was killed from outside (SIGKILL, SIGTERM): hardly the request's fault, but the kernel's out-of-memory killer
looks the same."""
OUT = 6
"""The second crash, or the sixth kill, without a token between: the request is ended."""


def worker_died(floor: Floor, worker: Worker, prefill: PrefillDesk, decode: DecodeDesk, *, killed: bool) -> None:
    """To be called once the process is known to be gone."""
    if floor.account is None:
        return
    seized = floor.pages.seize(worker.holder, COORDINATOR)
    if floor.control is not None:
        floor.control.mark(worker.role, busy=False)
    if floor.on_gpu:
        floor.doubts.raise_(worker.holder, seized, floor.clock.now())
    else:
        floor.pages.absolve(worker.holder)
    lost = _take_back(floor, worker, prefill, decode)
    for sequence in lost:
        strike(floor, sequence, KILL_STRIKES if killed else CRASH_STRIKES)
    log.warning(
        "worker lost",
        role=worker.role.name.lower(),
        incarnation=worker.incarnation,
        killed=killed,
        sequences=len(lost),
        leases=len(seized),
    )


def worker_retired(floor: Floor, worker: Worker, prefill: PrefillDesk, decode: DecodeDesk) -> None:
    """It has answered for everything and touches nothing any more. What it had is its successor's, at once."""
    if floor.account is None:
        return
    floor.pages.seize(worker.holder, COORDINATOR)
    if floor.control is not None:
        floor.control.mark(worker.role, busy=False)
    handed_on = _take_back(floor, worker, prefill, decode)
    log.info("worker retired", role=worker.role.name.lower(), incarnation=worker.incarnation, sequences=len(handed_on))


def _take_back(floor: Floor, worker: Worker, prefill: PrefillDesk, decode: DecodeDesk) -> list[Sequence]:
    """The sequences that were with it; those can go to another now."""
    found = prefill.worker_lost(worker)
    if worker.role is Role.DECODE:
        found += decode.worker_lost()
    # Of all leases that are ours now, whether they were seized or a worker that resigned has handed them over.
    for lease in floor.pages.seize(COORDINATOR, COORDINATOR):
        if floor.book.by_lease(lease) is None:
            floor.release(lease)
    return found


def strike(floor: Floor, sequence: Sequence, strikes: int) -> None:
    sequence.strikes += strikes
    if sequence.strikes >= OUT:
        request_id = sequence.entry.request.request_id
        log.error("a request kills its worker and is ended", request_id=request_id)
        floor.end(sequence.entry, InternalError("the request made its worker fail twice and was ended"))
