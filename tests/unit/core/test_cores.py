from __future__ import annotations

import pytest

from semipd.core.cores import split_cores
from semipd.core.partition import FULL, Shares


@pytest.mark.parametrize(
    ("shares", "cpus", "prefill", "decode"),
    [
        (Shares(50, 50), 2, 1, 1),
        (Shares(75, 25), 8, 6, 2),
        (Shares(30, 50), 10, 3, 5),
        (Shares(1, 99), 4, 1, 3),
        (Shares(99, 1), 4, 3, 1),
        (FULL, 4, 4, 4),
        (Shares(75, 50), 4, 3, 2),
    ],
)
def test_cpus_in_the_proportion_asked_for(shares: Shares, cpus: int, prefill: int, decode: int) -> None:
    split = split_cores(shares, range(cpus))
    assert (len(split.prefill), len(split.decode)) == (prefill, decode)
    assert split.granted == Shares(100 * prefill / cpus, 100 * decode / cpus)
    if shares.prefill + shares.decode <= 100:
        assert not set(split.prefill) & set(split.decode)


def test_one_cpu_is_for_both() -> None:
    split = split_cores(Shares(10, 90), [3])
    assert (split.prefill, split.decode, split.granted) == ((3,), (3,), FULL)


def test_no_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="no CPU"):
        split_cores(FULL, [])
