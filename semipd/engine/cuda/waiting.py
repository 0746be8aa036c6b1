"""Waiting for the device without losing sight of the rest."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

GLANCE_S = 30e-6


def wait_for(event: torch.cuda.Event, glance: Callable[[], None]) -> None:
    """Returns when all work before the event is done; `glance` is called again and again until then.

    Polls, because a thread that the driver wakes comes tens of microseconds late, and heartbeats must go on.
    Raises torch.AcceleratorError where the device has failed.
    """
    while not event.query():
        glance()
        time.sleep(GLANCE_S)
