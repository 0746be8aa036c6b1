"""Threads of the CPU back end."""

from __future__ import annotations

import torch


def set_threads(count: int) -> None:
    """Computes on `count` threads from now on; they run on the CPUs that the process is bound to."""
    torch.set_num_threads(max(1, count))
