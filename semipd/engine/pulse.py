"""The sign of life of a computation that may take long."""

from __future__ import annotations

from typing import Protocol


class Pulse(Protocol):
    """Receives signs of life from a computation."""

    def beat(self) -> None:
        """Notes progress: a layer is computed (CPU), or a pass has ended on the device (GPU)."""

    def report(self) -> None:
        """Notes that the process is alive, without progress. It is called again and again while a device computes."""


class SilentPulse:
    """A `Pulse` that nobody listens to: for measurements and tests."""

    def beat(self) -> None: ...
    def report(self) -> None: ...
