"""The page account: who holds which pages, in one structure that both workers and the coordinator share.

semi-PD (section 4.4): query, take and account must be one atomic step, or two asynchronous workers corrupt the count.
Here they also survive the death of whoever takes them. The truth is what stands at each page (slot of its lease, place
in the lease's table, references) and at each lease slot (generation, holder, number of pages). The free stack and the
counts are a cache of it. Each operation is committed by ONE aligned store; what a process killed at any instruction
leaves behind is the old state or the new one, once `_repair` has been over it:

* open, hand over, seize, close: the store of the lease's word (generation and holder; holder 0: closed)
* take, truncate: the store of the lease's number of pages

A page belongs to a lease if it names its slot, the lease is open, and its place is below the lease's number of pages.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from semipd.memory.errors import AccountCorrupt, NoLease, StaleLease
from semipd.memory.robust_mutex import MUTEX_BYTES, RobustMutex

Pages = npt.NDArray[np.int32]
Number = TypeVar("Number", np.int32, np.int64)

MAGIC = 0x53504441_00000001
HEADER_WORDS = 16
_FREE, _QUARANTINED, _CLOSED, _EPOCH, _REPAIRS = 3, 4, 5, 6, 7
"""Words of the header: heights of the two stacks and so on. Words 0 to 2 are magic, pages and leases."""
LOCK_TIMEOUT_S = 5.0
SLOT_BITS = 20
"""A lease id is generation << 20 | slot."""
FREE = -1
"""As a page's owner."""


class Role(IntEnum):
    COORDINATOR = 1
    PREFILL = 2
    DECODE = 3


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that may work on a lease."""

    role: Role
    incarnation: int
    """Below 2**24."""

    @property
    def word(self) -> int:
        return self.role << 24 | self.incarnation

    @classmethod
    def of(cls, word: int) -> Holder:
        return cls(Role(word >> 24), word & 0xFFFFFF)


@dataclass(frozen=True, slots=True)
class Counts:
    """Pages; free + owned + quarantined = total."""

    free: int
    owned: int
    quarantined: int
    total: int


class PageAccount:
    """One process's view of the account. Raises AccountBusy where the lock can't be had.

    `create` lays it out in a buffer, `attach` finds it there.
    """

    def __init__(self, buffer: memoryview, pages: int, leases: int) -> None:
        words = np.frombuffer(buffer, np.int64, HEADER_WORDS, MUTEX_BYTES)
        self._buffer = buffer
        self._header = words
        offset = MUTEX_BYTES + words.nbytes

        def column(count: int, kind: type[Number]) -> npt.NDArray[Number]:
            nonlocal offset
            found = np.frombuffer(buffer, kind, count, offset)
            offset += -(-found.nbytes // 8) * 8
            return found

        self._lease_word = column(leases, np.int64)
        """generation << 32 | holder's word; holder 0: closed."""
        self._lease_pages = column(leases, np.int64)
        self._owner = column(pages, np.int32)
        """Slot of the lease, or FREE."""
        self._place = column(pages, np.int32)
        self._references = column(pages, np.int32)
        self._epoch = column(pages, np.int64)
        """The take that gave the page out; rises with every take."""
        self._quarantine = column(pages, np.int32)
        """Word of the dead holder whose device work may still write to it; 0: none."""
        self._stack = column(pages, np.int32)
        self._slots = column(leases, np.int32)
        """A stack of closed lease slots, a cache too."""
        self._mutex = RobustMutex(ctypes.addressof(ctypes.c_char.from_buffer(buffer)))

    # --- where it lies ----------------------------------------------------------------------------------------------

    @staticmethod
    def bytes_needed(pages: int, leases: int) -> int:
        per_lease = 8 + 8 + 8
        per_page = 4 * 5 + 8
        return MUTEX_BYTES + 8 * HEADER_WORDS + leases * per_lease + pages * per_page + 64

    @classmethod
    def create(cls, buffer: memoryview, pages: int, leases: int) -> PageAccount:
        """Lays out an account with every page free. Nobody else may have the buffer yet."""
        if not 0 < leases < 1 << SLOT_BITS or not 0 < pages < 2**31:
            raise ValueError(
                f"{pages} pages and {leases} leases: at least one each, fewer than 2**31 and 2**{SLOT_BITS}"
            )
        self = cls(buffer, pages, leases)
        self._mutex.initialise()
        self._lease_word[:] = 1 << 32
        self._owner[:] = FREE
        self._header[1:3] = pages, leases
        self._repair()
        self._header[0] = MAGIC
        return self

    @classmethod
    def attach(cls, buffer: memoryview) -> PageAccount:
        """Raises AccountCorrupt where the buffer holds no account, or one of another version."""
        header = np.frombuffer(buffer, np.int64, HEADER_WORDS, MUTEX_BYTES)
        if header[0] != MAGIC:
            raise AccountCorrupt("the buffer holds no page account of this version")
        return cls(buffer, int(header[1]), int(header[2]))

    # --- the lock ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._mutex.acquire(LOCK_TIMEOUT_S):
            self._repair()
            self._header[_REPAIRS] += 1
            self._mutex.declare_consistent()
        try:
            yield
        finally:
            self._mutex.release()

    def _repair(self) -> None:
        """Rebuilds the cache from the truth. Idempotent: its own death in the middle does no harm."""
        used = np.flatnonzero(self._owner >= 0)
        slots = self._owner[used]
        is_open = (self._lease_word[slots] & 0xFFFFFFFF) != 0
        lost = used[~is_open | (self._place[used] >= self._lease_pages[slots])]
        self._references[lost] = 0
        self._owner[lost] = FREE
        self._quarantine[self._owner >= 0] = 0  # marked for a release that was never committed
        free = np.flatnonzero((self._owner == FREE) & (self._quarantine == 0))
        self._stack[: len(free)] = free[::-1]
        self._header[_FREE] = len(free)
        self._header[_QUARANTINED] = np.count_nonzero(self._quarantine)
        closed = np.flatnonzero((self._lease_word & 0xFFFFFFFF) == 0)
        self._slots[: len(closed)] = closed[::-1]
        self._header[_CLOSED] = len(closed)

    # --- leases -----------------------------------------------------------------------------------------------------

    def open(self, holder: Holder) -> int:
        """A new lease without pages. Raises NoLease where all slots are in use."""
        with self._locked():
            top = int(self._header[_CLOSED])
            if top == 0:
                raise NoLease(f"all {len(self._slots)} leases are in use")
            slot = int(self._slots[top - 1])
            generation = int(self._lease_word[slot]) >> 32
            self._lease_pages[slot] = 0
            self._lease_word[slot] = generation << 32 | holder.word
            self._header[_CLOSED] = top - 1
        return generation << SLOT_BITS | slot

    def holder(self, lease: int) -> Holder | None:
        """None: the lease is closed."""
        word = self._word(lease)
        return Holder.of(word) if word else None

    def hand_over(self, lease: int, giver: Holder, receiver: Holder) -> None:
        """The receiver may work on it from now on, the giver no more. Raises StaleLease."""
        with self._locked():
            slot = self._slot(lease, giver)
            self._lease_word[slot] = lease >> SLOT_BITS << 32 | receiver.word

    def seize(self, dead: Holder, receiver: Holder) -> list[int]:
        """All leases of a holder that is known to be dead; they are the receiver's now."""
        with self._locked():
            slots = np.flatnonzero((self._lease_word & 0xFFFFFFFF) == dead.word).tolist()
            found = []
            for slot in slots:
                generation = int(self._lease_word[slot]) >> 32
                self._lease_word[slot] = generation << 32 | receiver.word
                found.append(generation << SLOT_BITS | slot)
        return found

    def release(self, lease: int, holder: Holder, *, quarantine: bool = False) -> int:
        """Closes the lease and frees its pages; how many. Raises StaleLease.

        With `quarantine` they are not given out again before `absolve(holder)`: device work may still write to them.
        """
        with self._locked():
            slot = self._slot(lease, holder)
            pages = self._pages_of(slot)
            if quarantine:
                self._quarantine[pages] = holder.word
                self._header[_QUARANTINED] += len(pages)
            self._lease_word[slot] = ((lease >> SLOT_BITS) + 1 & 0x7FFFFFFF) << 32
            self._give_back(pages, free=not quarantine)
            self._lease_pages[slot] = 0
            self._slots[int(self._header[_CLOSED])] = slot
            self._header[_CLOSED] += 1
        return len(pages)

    def absolve(self, holder: Holder) -> int:
        """What that holder's death had quarantined is free; how many pages. Its device work is known to be over."""
        with self._locked():
            pages = np.flatnonzero((self._quarantine == holder.word) & (self._owner == FREE)).astype(np.int32)
            self._quarantine[pages] = 0
            self._header[_QUARANTINED] -= len(pages)
            self._give_back(pages, free=True)
        return len(pages)

    # --- pages ------------------------------------------------------------------------------------------------------

    def take(self, lease: int, count: int, holder: Holder) -> Pages | None:
        """`count` more pages for the lease, in the order of its table; None, and nothing taken, where fewer are free.

        Raises StaleLease.
        """
        with self._locked():
            slot = self._slot(lease, holder)
            top = int(self._header[_FREE])
            if count > top:
                return None
            held = int(self._lease_pages[slot])
            pages = self._stack[top - count : top][::-1].copy()
            self._header[_EPOCH] += 1
            self._place[pages] = np.arange(held, held + count)
            self._references[pages] = 1
            self._epoch[pages] = self._header[_EPOCH]
            self._owner[pages] = slot
            self._lease_pages[slot] = held + count
            self._header[_FREE] = top - count
        return pages

    def truncate(self, lease: int, keep: int, holder: Holder) -> int:
        """Gives back the pages of the table from place `keep` on; how many. Raises StaleLease."""
        with self._locked():
            slot = self._slot(lease, holder)
            pages = self._pages_of(slot)[keep:]
            self._lease_pages[slot] = min(keep, int(self._lease_pages[slot]))
            self._give_back(pages, free=True)
        return len(pages)

    def table(self, lease: int) -> Pages:
        """The lease's pages in the order of its tokens. Raises StaleLease where it is closed."""
        with self._locked():
            if not self._word(lease):
                raise StaleLease(f"lease {lease} is closed")
            return self._pages_of(lease & (1 << SLOT_BITS) - 1)

    # --- looking ----------------------------------------------------------------------------------------------------

    @property
    def free_pages(self) -> int:
        """Without the lock: true a moment ago."""
        return int(self._header[_FREE])

    @property
    def epoch(self) -> int:
        """Takes so far, of all processes."""
        return int(self._header[_EPOCH])

    @property
    def repairs(self) -> int:
        """How often somebody died with the lock in hand."""
        return int(self._header[_REPAIRS])

    def counts(self) -> Counts:
        with self._locked():
            total = len(self._owner)
            free, quarantined = int(self._header[_FREE]), int(self._header[_QUARANTINED])
            return Counts(free, total - free - quarantined, quarantined, total)

    def check(self) -> None:
        """Raises AccountCorrupt, naming the first contradiction."""
        with self._locked():
            self._check()

    def _check(self) -> None:
        free = np.sort(self._stack[: int(self._header[_FREE])])
        really = np.flatnonzero((self._owner == FREE) & (self._quarantine == 0))
        if not np.array_equal(free, really):
            raise AccountCorrupt(f"{len(free)} pages on the free stack, and {len(really)} are free")
        used = np.flatnonzero(self._owner >= 0)
        if np.any(self._references[used] < 1) or np.any(self._references[really] != 0):
            raise AccountCorrupt("a page's references contradict its owner")
        for slot in range(len(self._lease_word)):
            places = np.sort(self._place[used[self._owner[used] == slot]])
            is_open = self._lease_word[slot] & 0xFFFFFFFF != 0
            expected = int(self._lease_pages[slot]) if is_open else 0
            if not np.array_equal(places, np.arange(expected)):
                raise AccountCorrupt(f"lease slot {slot} has {expected} pages, and {len(places)} name it")

    # --- inside the lock --------------------------------------------------------------------------------------------

    def _word(self, lease: int) -> int:
        """Of the holder; 0: closed, or a later lease has the slot."""
        slot, generation = lease & (1 << SLOT_BITS) - 1, lease >> SLOT_BITS
        if not 0 <= slot < len(self._lease_word):
            return 0
        word = int(self._lease_word[slot])
        return word & 0xFFFFFFFF if word >> 32 == generation else 0

    def _slot(self, lease: int, holder: Holder) -> int:
        if self._word(lease) != holder.word:
            raise StaleLease(f"lease {lease} is not {holder.role.name.lower()}.{holder.incarnation}'s")
        return lease & (1 << SLOT_BITS) - 1

    def _pages_of(self, slot: int) -> Pages:
        pages = np.flatnonzero(self._owner == slot)
        return pages[np.argsort(self._place[pages], kind="stable")].astype(np.int32)

    def _give_back(self, pages: Pages, *, free: bool) -> None:
        self._references[pages] = 0
        self._owner[pages] = FREE
        if free:
            top = int(self._header[_FREE])
            self._stack[top : top + len(pages)] = pages[::-1]
            self._header[_FREE] = top + len(pages)
