"""A million operations of several processes on one account, while processes are killed at random points."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from semipd.memory.account import COORDINATOR, Holder, PageAccount, Role
from semipd.memory.arenas import SharedArena
from semipd.memory.errors import AccountBusy

PLAYERS = 4
ROUNDS = 8
OPERATIONS = 1_000_000 // (2 * ROUNDS)
"""Operations of each player; two of four live to finish theirs, so a million are done whatever the others manage."""
PAGES, LEASES = 96, 24
PLAYER = Path(__file__).parent / "account_player.py"
DEATHS = Path(__file__).parent / "account_deaths.py"


@pytest.fixture
def arena() -> Iterator[SharedArena]:
    with SharedArena.create("account", PageAccount.bytes_needed(PAGES, LEASES)) as made:
        PageAccount.create(made.buffer, PAGES, LEASES)
        yield made


def start(arena: SharedArena, me: Holder, seed: int, operations: int) -> subprocess.Popen[str]:
    numbers = (arena.fd, arena.bytes, int(me.role), me.incarnation, seed, operations)
    command = [sys.executable, str(PLAYER), *map(str, numbers)]
    return subprocess.Popen(command, pass_fds=[arena.fd], stdout=subprocess.PIPE, text=True)


def sums(account: PageAccount) -> None:
    counts = account.counts()
    assert counts.free + counts.owned + counts.quarantined == counts.total == PAGES
    account.check()


@pytest.mark.timeout(600)
def test_free_and_owned_are_always_all_and_nobody_blocks(arena: SharedArena) -> None:
    """Four processes play in each round; two are killed, at a moment of the test's random choice, and two finish."""
    account = PageAccount.attach(arena.buffer, lock_timeout_s=60)
    draw = random.Random(1)
    incarnation = 0
    for _ in range(ROUNDS):
        players: dict[Holder, subprocess.Popen[str]] = {}
        for number in range(PLAYERS):
            incarnation += 1
            me = Holder(Role.PREFILL if number % 2 else Role.DECODE, incarnation)
            players[me] = start(arena, me, draw.randrange(2**31), OPERATIONS)
        doomed = list(players)[:2]
        for me in doomed:
            epoch = account.epoch
            while account.epoch < epoch + draw.randint(200, 3000):
                sums(account)  # throughout, while the others play
            players[me].kill()
            players[me].wait()
            for lease in account.reassign(me, COORDINATOR):
                account.release(lease, COORDINATOR)
            account.clear_quarantine(me)
            sums(account)
        for me in set(players) - set(doomed):
            said, _ = players[me].communicate(timeout=280)
            assert said == "done\n", "a survivor neither blocks nor fails"
        sums(account)
    assert account.counts().free == PAGES


@pytest.mark.timeout(600)
def test_a_death_with_the_lock_in_hand_is_repaired(arena: SharedArena) -> None:
    """Players are killed until one dies inside a critical section, as the lock itself reports."""
    account = PageAccount.attach(arena.buffer, lock_timeout_s=60)
    draw = random.Random(2)
    for incarnation in range(1, 200):
        me = Holder(Role.PREFILL, incarnation)
        player = start(arena, me, incarnation, 10_000_000)
        epoch = account.epoch
        while account.epoch < epoch + draw.randint(1, 50):
            assert player.poll() is None
        player.kill()
        player.wait()
        sums(account)
        for lease in account.reassign(me, COORDINATOR):
            account.release(lease, COORDINATOR)
        account.clear_quarantine(me)
        sums(account)
        if account.repairs:
            break
    assert account.repairs > 0
    assert account.counts().free == PAGES


@pytest.mark.timeout(600)
def test_a_death_at_any_instruction_leaves_the_old_state_or_the_new() -> None:
    """Each operation, and the repair itself, is killed before each of its bytecode instructions in turn."""
    done = subprocess.run([sys.executable, str(DEATHS)], capture_output=True, text=True, check=True)
    findings = json.loads(done.stdout)
    assert {name: found["wrong"] for name, found in findings.items() if found["wrong"]} == {}
    assert all(found["deaths"] > 0 for found in findings.values())
    assert all(found["repairs"] > 0 for found in findings.values())


def test_a_stopped_holder_of_the_lock_is_waited_for_only_so_long(arena: SharedArena) -> None:
    """Its lock is not to be had while it stands still, and is repaired once it has been killed."""
    account = PageAccount.attach(arena.buffer, lock_timeout_s=0.05)
    command = [sys.executable, str(DEATHS), "stand-still", str(arena.fd), str(arena.bytes)]
    with subprocess.Popen(command, pass_fds=[arena.fd]) as still:
        _, status = os.waitpid(still.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        with pytest.raises(AccountBusy):
            account.counts()
        with pytest.raises(AccountBusy):
            account.open(COORDINATOR)
        still.kill()
    sums(account)
    assert account.repairs == 1
