"""Partition back ends on a GPU: shares as streaming multiprocessors (`green`) and as whole percents (`mps`)."""

from __future__ import annotations

from dataclasses import dataclass

from semipd.core.partition import FULL, Shares

SM_STEP = 8
"""Green contexts on Hopper come in groups of 8 SMs."""
EIGHTHS = 6
NOMINAL_SMS = 8
"""SMs of the device in snapshots that somebody makes by hand (`semipd.core.latency.NOMINAL`)."""
LEAST_PERCENT = 5
"""Least percentage of `mps`: below it a worker has hardly an SM to itself."""


@dataclass(frozen=True, slots=True)
class SmSplit:
    """Prefill gets the last `prefill` SMs, decode the first `decode`; and the shares that they amount to."""

    prefill: int
    decode: int
    granted: Shares


def decode_choices(total: int, step: int = SM_STEP) -> tuple[int, ...]:
    """The numbers of SMs that decode can get, rising, all of them last.

    One to six eighths of the device, rounded to the step: of 132 SMs these are 16, 32, 48, 64, 80 and 96. So few
    because decode captures its CUDA graphs for each.
    """
    parts = {max(step, int(total * k / 8 / step + 0.5) * step) for k in range(1, EIGHTHS + 1)}
    return (*sorted(n for n in parts if n < total), total)


def split(decode_sms: int, sms: int) -> Shares:
    """Returns the shares under which decode has the first `decode_sms` of all `sms` SMs and prefill the rest."""
    return Shares(prefill=100 * (sms - decode_sms) / sms, decode=100 * decode_sms / sms)


def splits(total: int, step: int = SM_STEP) -> tuple[Shares, ...]:
    """Returns the shares that a device of `total` SMs can be divided into, as `split_sms` grants them.

    The split that leaves prefill most comes first; the undivided device comes last.
    """
    return (*(split(decode, total) for decode in decode_choices(total, step) if decode < total), FULL)


def prefill_choices(total: int, step: int = SM_STEP) -> tuple[int, ...]:
    """The numbers of SMs that prefill can get, rising: what each choice of decode's leaves, and all."""
    return (*sorted(total - n for n in decode_choices(total, step) if n < total), total)


def split_sms(asked: Shares, total: int, step: int = SM_STEP) -> SmSplit:
    """The choices that are nearest to what is asked.

    Shares that together are at most 100 percent get disjoint SMs: decode what is nearest, prefill all the rest, so
    that none is idle. Above 100 each gets what is nearest, and they overlap in the middle. A device that is too small
    to be divided is both phases' (100, 100).
    """
    disjoint = decode_choices(total, step)[:-1]
    if asked.prefill + asked.decode > 100:
        decode = _nearest(decode_choices(total, step), total * asked.decode / 100)
        prefill = _nearest(prefill_choices(total, step), total * asked.prefill / 100)
    elif disjoint:
        decode = _nearest(disjoint, total * asked.decode / 100)
        prefill = total - decode
    else:
        prefill = decode = total
    return SmSplit(prefill, decode, Shares(100 * prefill / total, 100 * decode / total))


def _nearest(choices: tuple[int, ...], wanted: float) -> int:
    return min(choices, key=lambda n: abs(n - wanted))


@dataclass(frozen=True, slots=True)
class Percents:
    """CUDA_MPS_ACTIVE_THREAD_PERCENTAGE of each worker."""

    prefill: int
    decode: int

    @property
    def granted(self) -> Shares:
        return Shares(self.prefill, self.decode)


def whole_percents(asked: Shares = FULL) -> Percents:
    return Percents(_whole(asked.prefill), _whole(asked.decode))


def _whole(percent: float) -> int:
    return max(LEAST_PERCENT, round(percent))
