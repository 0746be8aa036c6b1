from __future__ import annotations

import pytest

from semipd.core.partition import FULL, Shares
from semipd.core.sms import decode_choices, prefill_choices, split_sms, whole_percents


def test_the_choices_of_an_h200() -> None:
    assert decode_choices(132) == (16, 32, 48, 64, 80, 96, 132)
    assert prefill_choices(132) == (36, 52, 68, 84, 100, 116, 132)


@pytest.mark.parametrize("total", [8, 16, 20, 46, 84, 108, 114, 132, 144, 148])
def test_choices_are_multiples_of_the_step_or_all_and_prefills_are_what_they_leave(total: int) -> None:
    decode, prefill = decode_choices(total), prefill_choices(total)
    assert all(n % 8 == 0 for n in decode[:-1])
    assert decode[-1] == prefill[-1] == total
    assert sorted(total - n for n in decode[:-1]) == list(prefill[:-1])
    assert len(decode) <= 7
    assert list(decode) == sorted(set(decode))


@pytest.mark.parametrize(
    ("asked", "prefill", "decode"),
    [
        (Shares(75, 25), 100, 32),
        (Shares(50, 50), 68, 64),
        (Shares(1, 1), 116, 16),
        (Shares(5, 95), 36, 96),
        (Shares(20, 50), 68, 64),
        (FULL, 132, 132),
        (Shares(100, 50), 132, 64),
        (Shares(60, 60), 84, 80),
    ],
)
def test_shares_become_the_nearest_choices(asked: Shares, prefill: int, decode: int) -> None:
    split = split_sms(asked, 132)
    assert (split.prefill, split.decode) == (prefill, decode)
    assert split.granted == Shares(100 * prefill / 132, 100 * decode / 132)


@pytest.mark.parametrize("total", [16, 46, 108, 132, 148])
@pytest.mark.parametrize("decode", [1, 10, 33, 50, 77, 99])
def test_shares_that_add_up_to_100_are_disjoint_and_leave_nothing_idle(total: int, decode: int) -> None:
    split = split_sms(Shares(100 - decode, decode), total)
    assert split.prefill + split.decode == total
    assert split.decode in decode_choices(total)
    assert split.prefill in prefill_choices(total)


def test_a_device_too_small_to_be_divided_is_both_phases() -> None:
    assert split_sms(Shares(50, 50), 8).granted == FULL


def test_percents_are_whole_and_at_least_5() -> None:
    percents = whole_percents(Shares(66.6, 0.5))
    assert (percents.prefill, percents.decode) == (67, 5)
    assert percents.granted == Shares(67, 5)
