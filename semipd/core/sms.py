"""Rounds shares to what the partition back ends of a GPU can grant: streaming multiprocessors, or whole percents."""

from __future__ import annotations

from dataclasses import dataclass

from semipd.core.partition import FULL, Shares

SM_STEP = 8
"""Green contexts on Hopper come in groups of 8 SMs."""
EIGHTHS = 6
"""Decode's largest part of a divided device, in eighths."""
NOMINAL_SMS = 8
"""SMs of the device in snapshots that somebody makes by hand (`semipd.core.latency.NOMINAL`)."""

LEAST_PERCENT = 5
"""Least percentage of `mps`: below it a worker has hardly an SM to itself."""


@dataclass(frozen=True, slots=True)
class SmSplit:
    """A division of a device's SMs."""

    prefill: int
    """SMs of prefill: the last ones."""
    decode: int
    """SMs of decode: the first ones."""
    granted: Shares
    """The shares that these amount to."""


def decode_choices(total: int, step: int = SM_STEP) -> tuple[int, ...]:
    """Returns the numbers of SMs that decode can get, ascending; the last is all of them.

    They are one to six eighths of the device, rounded to the step: of 132 SMs 16, 32, 48, 64, 80 and 96. There are few
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
    """Returns the numbers of SMs that prefill can get, ascending: what each choice of decode leaves, and all."""
    return (*sorted(total - n for n in decode_choices(total, step) if n < total), total)


def split_sms(asked: Shares, total: int, step: int = SM_STEP) -> SmSplit:
    """Returns the split that is nearest to what is asked.

    Shares of at most 100 percent together get disjoint SMs: decode gets the nearest number, prefill all the rest, so
    that none is idle. Above 100 percent each phase gets the nearest number, and they overlap in the middle. A device
    that is too small to be divided is granted whole to both (100, 100).
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
    """The CUDA_MPS_ACTIVE_THREAD_PERCENTAGE of each worker."""

    prefill: int
    decode: int

    @property
    def granted(self) -> Shares:
        return Shares(self.prefill, self.decode)


def whole_percents(asked: Shares = FULL) -> Percents:
    """Returns the whole percents that are nearest to what is asked."""
    return Percents(_whole(asked.prefill), _whole(asked.decode))


def _whole(percent: float) -> int:
    return max(LEAST_PERCENT, round(percent))
