"""A process that opens, takes, hands over, truncates and releases at random until it is told to stop, or killed.

usage: account_player.py FD BYTES ROLE INCARNATION SEED OPERATIONS
"""

from __future__ import annotations

import random
import sys

from semipd.memory.account import Holder, PageAccount, Role
from semipd.memory.arenas import SharedArena
from semipd.memory.errors import NoLease


def play(account: PageAccount, me: Holder, seed: int, operations: int) -> None:
    draw = random.Random(seed)
    mine: list[int] = []
    for _ in range(operations):
        choice = draw.random()
        if not mine or choice < 0.2:
            try:
                mine.append(account.open(me))
            except NoLease:
                choice = 1.0
        if mine:
            change(account, me, mine, choice, draw)
    for lease in mine:
        account.release(lease, me)


def change(account: PageAccount, me: Holder, mine: list[int], choice: float, draw: random.Random) -> None:
    """Does to one of the leases what `choice`, a number from 0 to 1, says."""
    lease = draw.choice(mine)
    if choice < 0.6:
        account.take(lease, draw.randint(1, 4), me)
    elif choice < 0.7:
        account.truncate(lease, draw.randint(0, 3), me)
    elif choice < 0.75:
        account.hand_over(lease, me, me)
    elif choice >= 0.8:
        account.release(lease, me, quarantine=choice > 0.97)
        mine.remove(lease)
        if choice > 0.97:
            account.clear_quarantine(me)


def main() -> None:
    fd, size, role, incarnation, seed, operations = map(int, sys.argv[1:])
    account = PageAccount.attach(SharedArena("account", fd, size).buffer, lock_timeout_s=60)
    play(account, Holder(Role(role), incarnation), seed, operations)
    print("done")


if __name__ == "__main__":
    main()
