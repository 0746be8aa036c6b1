"""Computing on CPUs: the share is a set of them."""

from __future__ import annotations

from semipd.core.model import ModelConfig
from semipd.engine.engine import CpuEngine
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Role
from semipd.workers.attach import Attached
from semipd.workers.backend import Pulse
from semipd.workers.coordinator_link import CoordinatorLink
from semipd.workers.cpu_affinity import CpuAffinity


class CpuBackend:
    """A `Backend`."""

    def __init__(
        self, link: CoordinatorLink, model: ModelConfig, role: Role, attached: Attached, appoint: wk.Appoint
    ) -> None:
        self._link = link
        self._shares = CpuAffinity(role, model)
        self._shares.compute_on(appoint.cpus)
        self.engine = CpuEngine(model, attached.weights, attached.pool)

    def busy(self, work: bool) -> None:
        """The system's scheduler sees it."""

    def choose_share(self) -> None:
        """It came as a message."""

    def takes_turns(self) -> bool:
        return False

    def alternates(self) -> bool:
        return False

    def my_turn(self) -> bool:
        return True

    def wait_for_turn(self, glance: Pulse) -> None:
        """There are no turns."""

    def end_turn(self, *, computed: int = 0, following: int = 0) -> bool:
        """There are no turns."""
        return False

    def set_shares(self, message: wk.SetShares) -> None:
        self._shares.compute_on(message.cpus)
        self._link.send(wk.FromWorker(shares_applied=wk.SharesApplied(change=message.change)))

    def has_spare_work(self) -> bool:
        return False

    def do_spare_work(self) -> None:
        """There is none."""
