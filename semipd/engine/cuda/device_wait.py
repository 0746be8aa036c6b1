"""Waiting for the device without losing sight of the rest."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from semipd.engine.decoder import Pulse

GLANCE_S = 30e-6


def wait_for(event: torch.cuda.Event, pulse: Pulse) -> None:
    """Returns when all work before the event is done, and beats the pulse once for it.

    Polls, because a thread that the driver wakes comes tens of microseconds late, and heartbeats must go on meanwhile:
    a pulse that has a `report` is asked to, again and again. Raises torch.AcceleratorError where the device has failed.
    """
    report: Callable[[], None] | None = getattr(pulse, "report", None)
    while not event.query():
        if report is not None:
            report()
        time.sleep(GLANCE_S)
    pulse()
