"""The page account: who holds which pages, in one structure that both workers and the coordinator share.

semi-PD (section 4.4) says that query, take and account must be one atomic step, or two asynchronous workers corrupt the
count. Here they also survive the death of the process that takes pages. The truth is what is stored at each page (slot
of its lease, place in the lease's table, references) and at each lease slot (generation, holder, number of pages). The
free stack and the counts are a cache of it. Each operation is committed by ONE aligned store. A process that is killed
at any instruction leaves behind the old state or the new one, once `_repair` has run:

* open, hand over, reassign, release: the store of the lease's word (generation and holder; holder 0: closed)
* take, truncate: the store of the lease's number of pages
* clear_quarantine: the store of each page's quarantine mark; when half of it is done, half of the pages are free, and
  it may be repeated

A page belongs to a lease if it names its slot, the lease is open, and its place is below the lease's number of pages.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from semipd.core.partition import Phase
from semipd.memory.errors import AccountCorrupt, NoLease, StaleLease
from semipd.memory.robust_mutex import MUTEX_BYTES, CriticalSection, RobustMutex

Pages = npt.NDArray[np.int32]
Number = TypeVar("Number", np.int32, np.int64)

MAGIC = 0x53504441_00000001
HEADER_WORDS = 16
_MAGIC, _PAGES, _LEASES, _FREE, _OWNED, _QUARANTINED, _CLOSED, _EPOCH, _REPAIRS = range(9)
"""Words of the header. Free pages and closed leases are the heights of the two stacks."""
LOCK_TIMEOUT_S = 5.0
"""Seconds to wait for the lock."""
SLOT_BITS = 20
"""A lease id is generation << 20 | slot."""
FREE = -1
"""Value of a page's owner that stands for no lease."""


class Role(IntEnum):
    """The kind of a process: the coordinator, or the worker of a phase."""

    COORDINATOR = 1
    PREFILL = 2
    DECODE = 3

    @property
    def phase(self) -> Phase:
        """The phase of a worker. Raises KeyError for the coordinator."""
        return Phase[self.name]


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that may work on a lease."""

    role: Role
    incarnation: int
    """Number of the process, below 2**24. A process that replaces another has a higher one."""

    def __post_init__(self) -> None:
        if not 0 <= self.incarnation < 1 << 24:
            raise ValueError(f"an incarnation is at least 0 and below 2**24; got {self.incarnation}")

    @property
    def word(self) -> int:
        """The holder as it is stored: role << 24 | incarnation."""
        return self.role << 24 | self.incarnation

    @classmethod
    def of(cls, word: int) -> Holder:
        return cls(Role(word >> 24), word & 0xFFFFFF)


COORDINATOR = Holder(Role.COORDINATOR, 0)
"""The coordinator as a holder. There is one coordinator in the life of an account."""


@dataclass(frozen=True, slots=True)
class PageCounts:
    """Numbers of pages; free + owned + quarantined = total."""

    free: int
    owned: int
    quarantined: int
    total: int


class PageAccount:
    """One process's view of the account.

    `create` lays the account out in a buffer, `attach` finds it there. Any thread may call any method, but no signal
    handler may, nor may one raise an exception in a thread that uses the account. Every method but `holder` and the
    properties raises AccountBusy where the lock can't be had in `lock_timeout_s`, and AccountCorrupt where a repair
    failed.
    """

    def __init__(self, buffer: memoryview, pages: int, leases: int, lock_timeout_s: float) -> None:
        self._header = buffer[MUTEX_BYTES : MUTEX_BYTES + 8 * HEADER_WORDS].cast("q")
        offset = MUTEX_BYTES + 8 * HEADER_WORDS

        def column(count: int, kind: type[Number]) -> npt.NDArray[Number]:
            nonlocal offset
            found = np.frombuffer(buffer, kind, count, offset)
            offset += _aligned(found.nbytes)
            return found

        self._lease_word = column(leases, np.int64)
        """generation << 32 | holder's word; holder 0: closed."""
        self._lease_pages = column(leases, np.int64)
        self._last_worker = column(leases, np.int32)
        """Word of the last worker that held the lease before its present holder; 0: none."""
        self._slots = column(leases, np.int32)
        """Cache: a stack of closed lease slots."""
        self._owner = column(pages, np.int32)
        """Slot of the lease, or FREE."""
        self._place = column(pages, np.int32)
        self._references = column(pages, np.int32)
        self._epoch = column(pages, np.int64)
        """The take that gave the page out; rises with every take."""
        self._quarantine = column(pages, np.int32)
        """Word of the worker whose device work may still write to it; 0: none."""
        self._stack = column(pages, np.int32)
        """Cache: a stack of free pages."""
        self._mutex = RobustMutex(ctypes.addressof(ctypes.c_char.from_buffer(buffer)))
        self._locked = CriticalSection(self._mutex, lock_timeout_s, self._repair_after_death)

    # --- where it lies ----------------------------------------------------------------------------------------------

    @staticmethod
    def bytes_needed(pages: int, leases: int) -> int:
        columns = (8 * leases, 8 * leases, 4 * leases, 4 * leases) + (4 * pages,) * 5 + (8 * pages,)
        return MUTEX_BYTES + 8 * HEADER_WORDS + sum(map(_aligned, columns))

    @classmethod
    def create(
        cls, buffer: memoryview, pages: int, leases: int, *, lock_timeout_s: float = LOCK_TIMEOUT_S
    ) -> PageAccount:
        """Lays out an account with every page free. Nobody else may have the buffer yet."""
        if not 0 < leases < 1 << SLOT_BITS or not 0 < pages < 2**31:
            raise ValueError(
                f"{pages} pages and {leases} leases: at least one each, fewer than 2**31 and 2**{SLOT_BITS}"
            )
        if buffer.nbytes < cls.bytes_needed(pages, leases):
            raise ValueError(f"the account needs {cls.bytes_needed(pages, leases)} bytes; got {buffer.nbytes}")
        self = cls(buffer, pages, leases, lock_timeout_s)
        self._mutex.initialise()
        self._lease_word[:] = 1 << 32
        self._owner[:] = FREE
        self._header[_PAGES] = pages
        self._header[_LEASES] = leases
        self._repair()
        self._header[_MAGIC] = MAGIC
        return self

    @classmethod
    def attach(cls, buffer: memoryview, *, lock_timeout_s: float = LOCK_TIMEOUT_S) -> PageAccount:
        """Raises AccountCorrupt where the buffer holds no account, or one of another version or size."""
        end = MUTEX_BYTES + 8 * HEADER_WORDS
        header = buffer[MUTEX_BYTES:end].cast("q") if buffer.nbytes >= end else None
        if header is None or header[_MAGIC] != MAGIC:
            raise AccountCorrupt("the buffer holds no page account of this version")
        pages, leases = header[_PAGES], header[_LEASES]
        if buffer.nbytes < cls.bytes_needed(pages, leases):
            raise AccountCorrupt(f"the buffer has {buffer.nbytes} bytes, too few for {pages} pages and {leases} leases")
        return cls(buffer, pages, leases, lock_timeout_s)

    # --- leases -----------------------------------------------------------------------------------------------------

    def open(self, holder: Holder) -> int:
        """Opens a lease without pages. Raises NoLease where all slots are in use."""
        with self._locked:
            top = self._header[_CLOSED]
            if top == 0:
                raise NoLease(f"all {len(self._slots)} leases are in use")
            slot = int(self._slots[top - 1])
            generation = int(self._lease_word[slot]) >> 32
            self._lease_pages[slot] = 0
            self._last_worker[slot] = 0
            self._lease_word[slot] = generation << 32 | holder.word
            self._header[_CLOSED] = top - 1
        return generation << SLOT_BITS | slot

    def holder(self, lease: int) -> Holder | None:
        """Returns the lease's holder; None: the lease is closed. It reads without the lock."""
        word = self._word(lease)
        return Holder.of(word) if word else None

    def hand_over(self, lease: int, giver: Holder, receiver: Holder) -> None:
        """Gives a lease to the receiver; the giver may not work on it any more. Raises StaleLease."""
        with self._locked:
            self._pass_on(self._slot(lease, giver), giver, receiver)

    def reassign(self, dead: Holder, receiver: Holder) -> list[int]:
        """Gives the receiver all leases of a holder that is known to be dead, and returns them."""
        with self._locked:
            slots: list[int] = np.flatnonzero((self._lease_word & 0xFFFFFFFF) == dead.word).tolist()
            for slot in slots:
                self._pass_on(slot, dead, receiver)
            return [(int(self._lease_word[slot]) >> 32) << SLOT_BITS | slot for slot in slots]

    def release(self, lease: int, holder: Holder, *, quarantine: bool = False) -> int:
        """Closes the lease, frees its pages and returns how many. Raises StaleLease.

        With `quarantine` they are not given out again before `clear_quarantine(worker)`, since device work may still
        write to them: work of `holder` or, where that is the coordinator, of the last worker that held the lease.
        """
        with self._locked:
            slot = self._slot(lease, holder)
            pages = self._pages_of(slot)
            suspect = holder.word if holder.role is not Role.COORDINATOR else int(self._last_worker[slot])
            quarantine = quarantine and suspect != 0
            if quarantine:
                self._quarantine[pages] = suspect
            generation = (lease >> SLOT_BITS) + 1 & 0x7FFFFFFF or 1
            self._lease_word[slot] = generation << 32
            self._disown(pages)
            if quarantine:
                self._header[_QUARANTINED] += len(pages)
            else:
                self._push(pages)
            self._lease_pages[slot] = 0
            closed = self._header[_CLOSED]
            self._slots[closed] = slot
            self._header[_CLOSED] = closed + 1
        return len(pages)

    def clear_quarantine(self, worker: Holder) -> int:
        """Frees the pages in quarantine for that worker, whose device work is known to be over; returns how many."""
        with self._locked:
            pages = np.flatnonzero(self._quarantine == worker.word).astype(np.int32)
            self._quarantine[pages] = 0
            self._header[_QUARANTINED] -= len(pages)
            self._push(pages)
        return len(pages)

    # --- pages ------------------------------------------------------------------------------------------------------

    def take(self, lease: int, count: int, holder: Holder) -> Pages | None:
        """Takes `count` more pages for the lease, and returns them in the order of its table.

        Returns None, and takes nothing, where fewer pages are free. Raises StaleLease.
        """
        if count < 0:
            raise ValueError(f"can't take {count} pages")
        with self._locked:
            slot = self._slot(lease, holder)
            top = self._header[_FREE]
            if count > top:
                return None
            held = int(self._lease_pages[slot])
            pages = self._stack[top - count : top][::-1].copy()
            epoch = self._header[_EPOCH] + 1
            self._header[_EPOCH] = epoch
            self._place[pages] = np.arange(held, held + count)
            self._references[pages] = 1
            self._epoch[pages] = epoch
            self._owner[pages] = slot
            self._lease_pages[slot] = held + count
            self._header[_FREE] = top - count
            self._header[_OWNED] += count
        return pages

    def truncate(self, lease: int, keep: int, holder: Holder) -> int:
        """Gives back the pages of the table from place `keep` on, and returns how many. Raises StaleLease."""
        if keep < 0:
            raise ValueError(f"can't keep {keep} pages")
        with self._locked:
            slot = self._slot(lease, holder)
            pages = self._pages_of(slot)[keep:]
            if len(pages):
                self._lease_pages[slot] = keep
                self._disown(pages)
                self._push(pages)
        return len(pages)

    def table(self, lease: int) -> Pages:
        """Returns the lease's pages in the order of its tokens. Raises StaleLease where it is closed."""
        with self._locked:
            if not self._word(lease):
                raise StaleLease(f"lease {lease} is closed")
            return self._pages_of(lease & (1 << SLOT_BITS) - 1)

    # --- looking ----------------------------------------------------------------------------------------------------

    @property
    def free_pages(self) -> int:
        """Free pages. It reads without the lock, so the number was true a moment ago."""
        return int(self._header[_FREE])

    @property
    def epoch(self) -> int:
        """Number of takes so far, of all processes."""
        return int(self._header[_EPOCH])

    @property
    def repairs(self) -> int:
        """Number of times that a process died while it held the lock."""
        return int(self._header[_REPAIRS])

    def counts(self) -> PageCounts:
        with self._locked:
            return PageCounts(*(self._header[word] for word in (_FREE, _OWNED, _QUARANTINED, _PAGES)))

    def check(self) -> None:
        """Raises AccountCorrupt, naming the first contradiction between the truth and itself or the cache."""
        with self._locked:
            self._check()

    # --- inside the lock --------------------------------------------------------------------------------------------

    def _word(self, lease: int) -> int:
        """Returns the holder's word; 0: the lease is closed, or a later lease has the slot."""
        slot, generation = lease & (1 << SLOT_BITS) - 1, lease >> SLOT_BITS
        if slot >= len(self._lease_word):
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

    def _pass_on(self, slot: int, giver: Holder, receiver: Holder) -> None:
        if giver.role is not Role.COORDINATOR:
            self._last_worker[slot] = giver.word
        self._lease_word[slot] = int(self._lease_word[slot]) >> 32 << 32 | receiver.word

    def _disown(self, pages: Pages) -> None:
        self._references[pages] = 0
        self._owner[pages] = FREE
        self._header[_OWNED] -= len(pages)

    def _push(self, pages: Pages) -> None:
        top = self._header[_FREE]
        self._stack[top : top + len(pages)] = pages[::-1]
        self._header[_FREE] = top + len(pages)

    def _repair_after_death(self) -> None:
        self._repair()
        self._header[_REPAIRS] += 1

    def _repair(self) -> None:
        """Rebuilds the cache from the truth. It is idempotent, so a death in the middle of it does no harm."""
        used = np.flatnonzero(self._owner >= 0)
        slots = self._owner[used]
        is_open = (self._lease_word[slots] & 0xFFFFFFFF) != 0
        self._owner[used[~is_open | (self._place[used] >= self._lease_pages[slots])]] = FREE
        owned = self._owner >= 0
        self._references[~owned] = 0
        self._quarantine[owned] = 0  # marked for a release that was never committed
        free = np.flatnonzero(~owned & (self._quarantine == 0))
        self._stack[: len(free)] = free[::-1]
        self._header[_FREE] = len(free)
        self._header[_OWNED] = int(np.count_nonzero(owned))
        self._header[_QUARANTINED] = int(np.count_nonzero(self._quarantine))
        closed = np.flatnonzero((self._lease_word & 0xFFFFFFFF) == 0)
        self._slots[: len(closed)] = closed[::-1]
        self._header[_CLOSED] = len(closed)

    def _check(self) -> None:
        owned, marked, is_open = self._owner >= 0, self._quarantine != 0, (self._lease_word & 0xFFFFFFFF) != 0
        used = np.flatnonzero(owned)
        _same("pages with an owner, and counted so,", [np.count_nonzero(owned)], [self._header[_OWNED]])
        _same("pages in quarantine, and counted so,", [np.count_nonzero(marked)], [self._header[_QUARANTINED]])
        _same("pages in quarantine with an owner", np.flatnonzero(owned & marked), [])
        _same("free pages, and the free stack,", np.flatnonzero(~owned & ~marked), self._stack[: self._header[_FREE]])
        _same("closed leases, and their stack,", np.flatnonzero(~is_open), self._slots[: self._header[_CLOSED]])
        _same("pages with a reference, and with an owner,", np.flatnonzero(self._references), used)
        # Every lease's pages have the places 0, 1, 2 and so on: none twice, none missing.
        held = np.where(is_open, self._lease_pages, 0)
        slots = np.repeat(np.arange(len(held)), held)
        places = np.arange(held.sum()) - np.repeat(np.cumsum(held) - held, held)
        named = self._owner[used].astype(np.int64) << 32 | self._place[used]
        _same("places of leases (slot << 32 | place), and those that pages name,", slots << 32 | places, named)


def _aligned(size: int) -> int:
    return -(-size // 8) * 8


def _same(what: str, one: npt.ArrayLike, other: npt.ArrayLike) -> None:
    """Raises AccountCorrupt unless both hold the same numbers, whatever their order."""
    left, right = (np.sort(np.asarray(side, np.int64), kind="stable") for side in (one, other))
    if not np.array_equal(left, right):
        both = min(len(left), len(right))
        first = int(np.argmax(np.append(left[:both] != right[:both], True)))
        values = ", ".join(str(side[first]) if first < len(side) else "nothing" for side in (left, right))
        raise AccountCorrupt(f"{what} differ in number {first} of {len(left)} and {len(right)}: {values}")
