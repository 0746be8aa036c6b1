"""Random numbers for sampling: one for each (seed, output position), the same in every process and batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def uniforms(seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Returns numbers in [0, 1), by SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) as a counter-based generator.

    The seed is mixed first, so that seeds next to each other give unrelated streams. The position is the counter.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        stream = _mix(seeds + _GAMMA)
        bits = _mix(stream + (positions.astype(np.uint64) + np.uint64(1)) * _GAMMA)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))
