"""Pages that a dead worker's work on the GPU may still write to.

A process can be gone before what it had launched is over (under MPS its kernels run in the server's context). Until
that is known to be over, pages of its leases may be kept, for their next owner writes the same again, but not be given
to anybody else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from semipd.memory.account import Holder, PageAccount

OVER_S = 1.0
"""After its process is gone, no work of a worker is on the device any more."""


@dataclass(slots=True)
class PageQuarantine:
    _dead: dict[Holder, float] = field(default_factory=dict)
    """When each was found dead."""
    _leases: dict[int, Holder] = field(default_factory=dict)
    """That were seized from one of them."""

    def raise_(self, dead: Holder, leases: list[int], now: float) -> None:
        self._dead[dead] = now
        self._leases.update(dict.fromkeys(leases, dead))

    def about(self, lease: int) -> bool:
        """Whether its pages, when released, belong in quarantine."""
        return lease in self._leases

    def settle(self, account: PageAccount, now: float, newest_s: float | None) -> None:
        """Frees what is over. `newest_s`: when the last of the workers that are ready now was appointed; the device let
        it in, so that what was on it before is over."""
        for dead, gone_s in list(self._dead.items()):
            if now >= gone_s + OVER_S or (newest_s is not None and newest_s > gone_s):
                account.clear_quarantine(dead)
                del self._dead[dead]
                self._leases = {lease: holder for lease, holder in self._leases.items() if holder != dead}

    def forget(self) -> None:
        """The account itself is gone."""
        self._dead.clear()
        self._leases.clear()
