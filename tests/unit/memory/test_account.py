from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import pytest

from semipd.memory.account import COORDINATOR, Holder, PageAccount, PageCounts, Role
from semipd.memory.errors import AccountCorrupt, NoLease, StaleLease

PREFILL = Holder(Role.PREFILL, 1)
DECODE = Holder(Role.DECODE, 2)


def make(pages: int = 8, leases: int = 4) -> PageAccount:
    return PageAccount.create(memoryview(bytearray(PageAccount.bytes_needed(pages, leases))), pages, leases)


def test_pages_are_taken_in_order_and_come_back() -> None:
    account = make()
    lease = account.open(PREFILL)
    first, second = account.take(lease, 3, PREFILL), account.take(lease, 2, PREFILL)
    assert first is not None
    assert second is not None
    assert account.table(lease).tolist() == [*first.tolist(), *second.tolist()]
    assert account.counts() == PageCounts(free=3, owned=5, quarantined=0, total=8)
    assert account.release(lease, PREFILL) == 5
    assert account.counts() == PageCounts(free=8, owned=0, quarantined=0, total=8)
    account.check()


def test_no_page_has_two_owners() -> None:
    account = make()
    leases = [account.open(PREFILL) for _ in range(4)]
    for lease in leases:
        account.take(lease, 2, PREFILL)
    pages = [page for lease in leases for page in account.table(lease).tolist()]
    assert sorted(pages) == list(range(8))


def test_more_than_is_free_takes_nothing() -> None:
    account = make(pages=4)
    lease = account.open(PREFILL)
    assert account.take(lease, 5, PREFILL) is None
    assert account.counts().free == 4


def test_a_hand_over_moves_the_right_to_the_pages_and_not_the_pages() -> None:
    account = make()
    lease = account.open(PREFILL)
    pages = account.take(lease, 2, PREFILL)
    assert pages is not None
    account.hand_over(lease, PREFILL, DECODE)
    assert account.holder(lease) == DECODE
    assert account.table(lease).tolist() == pages.tolist()
    with pytest.raises(StaleLease):
        account.take(lease, 1, PREFILL)
    with pytest.raises(StaleLease):
        account.hand_over(lease, PREFILL, COORDINATOR)
    account.take(lease, 1, DECODE)


def test_a_lease_that_is_closed_is_stale_for_ever_though_its_slot_is_used_again() -> None:
    account = make(leases=1)
    old = account.open(PREFILL)
    account.release(old, PREFILL)
    new = account.open(PREFILL)
    assert new != old
    assert account.holder(old) is None
    for act in (
        lambda: account.take(old, 1, PREFILL),
        lambda: account.release(old, PREFILL),
        lambda: account.table(old),
        lambda: account.truncate(old, 0, PREFILL),
    ):
        with pytest.raises(StaleLease):
            act()


@pytest.mark.parametrize("nonsense", [0, 7, 2**40, 2**63])
def test_a_number_that_is_no_lease_is_refused(nonsense: int) -> None:
    account = make()
    assert account.holder(nonsense) is None
    with pytest.raises(StaleLease):
        account.release(nonsense, PREFILL)


def test_leases_end() -> None:
    account = make(leases=2)
    account.open(PREFILL)
    account.open(PREFILL)
    with pytest.raises(NoLease):
        account.open(PREFILL)


def test_all_that_a_dead_holder_had_is_seized() -> None:
    account = make()
    mine, other = [account.open(PREFILL), account.open(PREFILL)], account.open(DECODE)
    account.take(mine[0], 2, PREFILL)
    assert sorted(account.reassign(PREFILL, COORDINATOR)) == sorted(mine)
    assert account.holder(mine[0]) == COORDINATOR
    assert account.holder(other) == DECODE
    with pytest.raises(StaleLease):
        account.take(mine[0], 1, PREFILL)


def test_quarantined_pages_are_not_given_out_before_they_are_absolved() -> None:
    account = make()
    lease = account.open(DECODE)
    account.take(lease, 6, DECODE)
    account.release(lease, DECODE, quarantine=True)
    assert account.counts() == PageCounts(free=2, owned=0, quarantined=6, total=8)
    account.check()
    late = account.open(PREFILL)
    assert account.take(late, 3, PREFILL) is None
    assert account.clear_quarantine(DECODE) == 6
    assert account.take(late, 8, PREFILL) is not None
    account.check()


def test_truncate_keeps_the_front_of_the_table() -> None:
    account = make()
    lease = account.open(DECODE)
    pages = account.take(lease, 5, DECODE)
    assert pages is not None
    assert account.truncate(lease, 2, DECODE) == 3
    assert account.table(lease).tolist() == pages.tolist()[:2]
    assert account.counts().free == 6
    account.check()


def test_two_views_of_one_buffer_are_one_account() -> None:
    buffer = memoryview(bytearray(PageAccount.bytes_needed(8, 4)))
    one = PageAccount.create(buffer, 8, 4)
    other = PageAccount.attach(buffer)
    lease = one.open(PREFILL)
    one.take(lease, 3, PREFILL)
    assert other.counts() == one.counts()
    other.release(lease, PREFILL)
    assert one.free_pages == 8


def test_a_buffer_that_holds_no_account_is_refused() -> None:
    with pytest.raises(AccountCorrupt):
        PageAccount.attach(memoryview(bytearray(PageAccount.bytes_needed(8, 4))))


def test_an_account_larger_than_its_buffer_is_refused() -> None:
    buffer = memoryview(bytearray(PageAccount.bytes_needed(8, 4)))
    PageAccount.create(buffer, 8, 4)
    with pytest.raises(AccountCorrupt, match="too few for 8 pages"):
        PageAccount.attach(buffer[:-8])
    with pytest.raises(ValueError, match="the account needs"):
        PageAccount.create(buffer, 9, 4)


def test_what_a_seized_lease_had_is_in_quarantine_for_its_worker_and_not_for_who_seized_it() -> None:
    account = make()
    lease = account.open(PREFILL)
    account.take(lease, 5, PREFILL)
    account.reassign(PREFILL, COORDINATOR)
    account.release(lease, COORDINATOR, quarantine=True)
    assert account.counts().quarantined == 5
    assert account.clear_quarantine(COORDINATOR) == 0
    assert account.clear_quarantine(DECODE) == 0
    assert account.clear_quarantine(PREFILL) == 5
    assert account.counts().free == 8
    account.check()


def test_pages_that_no_worker_ever_had_need_no_quarantine() -> None:
    account = make()
    lease = account.open(COORDINATOR)
    account.take(lease, 2, COORDINATOR)
    account.release(lease, COORDINATOR, quarantine=True)
    assert account.counts() == PageCounts(free=8, owned=0, quarantined=0, total=8)


@pytest.mark.parametrize("act", [PageAccount.take, PageAccount.truncate], ids=["take", "truncate"])
def test_a_negative_number_of_pages_is_refused(act: Callable[[PageAccount, int, int, Holder], object]) -> None:
    account = make()
    lease = account.open(PREFILL)
    account.take(lease, 2, PREFILL)
    with pytest.raises(ValueError, match="-1 pages"):
        act(account, lease, -1, PREFILL)
    assert account.counts().owned == 2


def test_truncate_to_more_than_there_is_frees_nothing() -> None:
    account = make()
    lease = account.open(PREFILL)
    account.take(lease, 2, PREFILL)
    assert account.truncate(lease, 3, PREFILL) == 0
    assert len(account.table(lease)) == 2


@pytest.mark.parametrize("incarnation", [-1, 2**24])
def test_an_incarnation_that_does_not_fit_is_refused(incarnation: int) -> None:
    with pytest.raises(ValueError, match="incarnation"):
        Holder(Role.PREFILL, incarnation)


def test_an_exception_in_the_middle_leaves_the_old_state_or_the_new_and_the_lock_free() -> None:
    """Memory may run out between any two lines of an operation. Here it does, at each line in turn."""
    line, finished = 0, False
    while not finished:
        account = make()
        lease = account.open(PREFILL)
        account.take(lease, 2, PREFILL)
        before = account.table(lease).tolist()
        finished = runs_dry(partial(account.take, lease, 3, PREFILL), line)
        account.check()
        after = account.table(lease).tolist()
        assert after[:2] == before
        assert len(after) in ((5,) if finished else (2, 5))
        line += 1
    assert line > 10


def runs_dry(act: Callable[[], object], at: int) -> bool:
    """Acts, and raises MemoryError at the n-th line of `PageAccount.take` inside the lock; False: that came."""
    code, left = PageAccount.take.__code__, at
    lines, first = inspect.getsourcelines(PageAccount.take)
    inside = first + next(n for n, line in enumerate(lines) if "with self._locked" in line)

    def step(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal left
        if frame.f_code is not code:
            return None
        if event == "line" and inside < frame.f_lineno < first + len(lines) - 1:
            if left == 0:
                raise MemoryError
            left -= 1
        return step

    sys.settrace(step)
    try:
        act()
    except MemoryError:
        return False
    finally:
        sys.settrace(None)
    return True


def test_an_account_that_contradicts_itself_is_told_of() -> None:
    """A page of one lease is written over with another lease's slot, as a stray write would."""
    buffer = memoryview(bytearray(PageAccount.bytes_needed(8, 4)))
    account = PageAccount.create(buffer, 8, 4)
    leases = [account.open(PREFILL), account.open(DECODE)]
    account.take(leases[0], 3, PREFILL)
    account.take(leases[1], 3, DECODE)
    account.check()
    slots = leases[0] & 0xFFFFF, leases[1] & 0xFFFFF
    owners = np.array([slots[0]] * 3 + [slots[1]] * 3 + [-1] * 2, np.int32).tobytes()
    place = bytes(buffer).find(owners)
    assert place > 0
    buffer[place : place + 4] = np.array([slots[1]], np.int32).tobytes()
    with pytest.raises(AccountCorrupt, match="places of leases"):
        account.check()
