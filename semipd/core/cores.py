"""The partition back end "cores": makes CPU sets in the proportion that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from semipd.core.partition import FULL, Phase, Shares


@dataclass(frozen=True, slots=True)
class CoreSplit:
    """The CPUs that each phase computes on, and the shares that they amount to."""

    prefill: tuple[int, ...]
    decode: tuple[int, ...]
    granted: Shares

    def of(self, phase: Phase) -> tuple[int, ...]:
        """Returns a phase's CPUs."""
        return self.prefill if phase is Phase.PREFILL else self.decode


def split_cores(asked: Shares, cpus: Sequence[int]) -> CoreSplit:
    """Gives prefill CPUs from the front and decode CPUs from the back, in the proportion that is asked for.

    Shares that together are at most 100 percent get disjoint CPUs, at least one each. Above 100 they overlap as the
    shares do. One CPU can't be divided: both phases get it, and the grant says so (100, 100).
    """
    total = len(cpus)
    if total == 0:
        raise ValueError("no CPU to compute on")
    if total == 1:
        return CoreSplit((cpus[0],), (cpus[0],), FULL)
    if asked.prefill + asked.decode <= 100:
        decode = min(total - 1, max(1, round(total * asked.decode / 100)))
        prefill = min(total - decode, max(1, round(total * asked.prefill / 100)))
    else:
        prefill = max(1, round(total * asked.prefill / 100))
        decode = max(1, round(total * asked.decode / 100))
    granted = Shares(100 * prefill / total, 100 * decode / total)
    return CoreSplit(tuple(cpus[:prefill]), tuple(cpus[total - decode :]), granted)
