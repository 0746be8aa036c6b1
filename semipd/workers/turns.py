"""What a worker does about its turn while a pass is on the device, and the moment that one has ended."""

from __future__ import annotations

from collections.abc import Callable

from semipd.workers.link import Pulse


class TurnPulse:
    """Stands in for the worker's pulse: an engine calls it whenever a pass has ended, before it looks at the outcomes,
    and its `report` again and again until then. So the other phase need not wait for what the CPU makes of a pass."""

    def __init__(self, pulse: Pulse, ended: Callable[[], None], meanwhile: Callable[[], None] = lambda: None) -> None:
        self._pulse, self._ended, self._meanwhile = pulse, ended, meanwhile

    def __call__(self) -> None:
        self._pulse()
        self._ended()

    def report(self) -> None:
        self._pulse.report()
        self._meanwhile()
