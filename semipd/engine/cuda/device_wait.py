"""Waits for the device while heartbeats go on."""

from __future__ import annotations

import time

import torch

from semipd.engine.pulse import Pulse

GLANCE_S = 30e-6
"""Seconds between two looks at an event."""


def wait_for(event: torch.cuda.Event, pulse: Pulse) -> None:
    """Returns when all work before the event is done, and beats the pulse once for it.

    It polls, because a thread that the driver wakes comes tens of microseconds late, and because heartbeats must go on
    meanwhile: the pulse is asked to report again and again. Raises torch.AcceleratorError where the device has failed.
    """
    while not event.query():
        pulse.report()
        time.sleep(GLANCE_S)
    pulse.beat()
