"""The interfaces between the parts of a simulated server, and between the server and the policy."""

from __future__ import annotations

from typing import Protocol

from semipd.core.plan import Admission, Plan
from semipd.core.snapshot import Snapshot, WaitingSequence
from semipd.sim.request import SimSequence


class PolicyAsker(Protocol):
    """Asks the policy, and checks what it answers. The server's own is `semipd.coordinator.policy_host.PolicyHost`."""

    @property
    def name(self) -> str:
        """The name of the policy that is asked."""

    def admit(self, snapshot: Snapshot, sequence: WaitingSequence) -> Admission:
        """Returns what the policy says to a request that has arrived."""

    def plan(self, snapshot: Snapshot) -> Plan:
        """Returns a plan that keeps the contract."""


class DecodeOwner(Protocol):
    """The server, as the decode worker sees it."""

    def take_pages(self, count: int) -> bool:
        """Takes pages out of the pool. Returns False, and takes none, where there are not that many."""

    def joined(self, sequence: SimSequence) -> None:
        """Hears that the sequence has come into the batch."""

    def paused(self, sequence: SimSequence, steps: int) -> None:
        """Hears that the sequence is held back, and that all its tokens are known: of `steps` steps since it joined."""

    def preempted(self, sequence: SimSequence) -> None:
        """Hears that the sequence was taken out of the batch for want of pages, as `take_out` does it."""
