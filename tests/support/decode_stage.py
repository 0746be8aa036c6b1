"""A stage for the decode worker: a played link, a batch that is one step late as a GPU's is, and a page account."""

from __future__ import annotations

from collections.abc import Callable

from semipd.memory.account import Holder, PageAccount, Role
from semipd.workers.decode import DecodeWorker
from support.workers import LateBatch, Play, PlayedBackend, PlayedLink, PlayedTurns, new_account

ME = Holder(Role.DECODE, 3)


class DecodeStage:
    """Runs a decode worker through a play, and has what it reported."""

    def __init__(self, pages: int = 16) -> None:
        self.account: PageAccount = new_account(pages)
        self.turns = PlayedTurns()
        self.batch = LateBatch(self.account, ME, self.turns.log)
        self.link: PlayedLink
        self.pages = pages

    def lease(self, pages: int = 1) -> int:
        lease = self.account.open(ME)
        assert self.account.take(lease, pages, ME) is not None
        return lease

    def run(self, play: Callable[[], Play], *, to_the_end: bool = True) -> None:
        self.link = PlayedLink(play())
        DecodeWorker(self.link, self.batch, self.account, ME, PlayedBackend(self.turns)).run()
        assert self.link.played == to_the_end
        self.account.check()

    def held(self, lease: int) -> bool:
        return self.account.holder(lease) == ME

    def tokens(self, lease: int) -> list[int]:
        """Output positions that were reported, in the order of the reports."""
        return [
            position
            for step in self.link.steps()
            for of, position in zip(step.leases, step.positions, strict=True)
            if of == lease
        ]

    def told(self, kind: str) -> list[int]:
        return [lease for step in self.link.steps() for lease in getattr(step, kind)]
