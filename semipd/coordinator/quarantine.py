"""Keeps the pages apart that a dead worker's work on the GPU may still write to.

A process can be gone before the work that it launched is over: under MPS its kernels run in the server's context. Until
that work is known to be over, a sequence may keep such pages, because their next owner writes the same values again.
But the pages may not be given to another sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from semipd.memory.account import Holder, PageAccount

OVER_S = 1.0
"""Seconds after the end of a worker's process when none of its work is on the device any more."""


@dataclass(slots=True)
class PageQuarantine:
    """The dead workers whose work may not be over, and the leases that they held."""

    _dead: dict[Holder, float] = field(default_factory=dict)
    """The time at which each worker was found dead."""
    _leases: dict[int, Holder] = field(default_factory=dict)
    """The dead worker from which each lease was reassigned."""

    def add(self, dead: Holder, leases: list[int], now: float) -> None:
        """Remembers a dead worker and the leases that it held."""
        self._dead[dead] = now
        self._leases.update(dict.fromkeys(leases, dead))

    def about(self, lease: int) -> bool:
        """Returns whether the pages of the lease belong in quarantine when they are released."""
        return lease in self._leases

    def settle(self, account: PageAccount, now: float, newest_s: float | None) -> None:
        """Frees the pages of dead workers whose work is over.

        `newest_s` is when the newest of the ready workers was assigned (None: no worker is ready). The device let that
        worker in, so work that was on it before is over.
        """
        for dead, died_s in list(self._dead.items()):
            if now >= died_s + OVER_S or (newest_s is not None and newest_s > died_s):
                account.clear_quarantine(dead)
                del self._dead[dead]
                self._leases = {lease: holder for lease, holder in self._leases.items() if holder != dead}

    def forget(self) -> None:
        """Forgets everything: the account itself is gone."""
        self._dead.clear()
        self._leases.clear()
