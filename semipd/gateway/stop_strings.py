"""Finds stop strings, wherever token borders fall."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopMatch:
    """A stop string that was found. `start` and `end` count the characters scanned, from the first."""

    stop: str
    start: int
    end: int


class StopStrings:
    """An automaton that knows, after each character, the longest suffix that may still become a stop string.

    Aho and Corasick, "Efficient string matching: an aid to bibliographic search" (1975), with failure links followed
    when needed: O(1) a character, amortised, however many stop strings there are. Immutable: shared by all samples.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.moves: list[dict[str, int]] = [{}]
        self.fail: list[int] = [0]
        self.depth: list[int] = [0]
        """Characters of the prefix that a state stands for."""
        self.found: list[str | None] = [None]
        """The longest stop string that ends in a state."""
        for stop in stops:
            self._insert(stop)
        self._link()
        self.first = re.compile("[" + re.escape("".join(sorted({stop[0] for stop in stops}))) + "]")
        """The characters that begin a stop string."""

    def _insert(self, stop: str) -> None:
        state = 0
        for character in stop:
            following = self.moves[state].get(character)
            if following is None:
                following = len(self.moves)
                self.moves[state][character] = following
                self.moves.append({})
                self.fail.append(0)
                self.depth.append(self.depth[state] + 1)
                self.found.append(None)
            state = following
        self.found[state] = stop

    def _link(self) -> None:
        queue = deque(self.moves[0].values())
        while queue:
            state = queue.popleft()
            for character, following in self.moves[state].items():
                self.fail[following] = self.step(self.fail[state], character)
                queue.append(following)
            if self.found[state] is None:
                self.found[state] = self.found[self.fail[state]]

    def step(self, state: int, character: str) -> int:
        while True:
            following = self.moves[state].get(character)
            if following is not None:
                return following
            if state == 0:
                return 0
            state = self.fail[state]


class StopScanner:
    """Reads one sample's text as it grows. The stop string that is complete first wins; of several, the longest."""

    def __init__(self, stops: StopStrings) -> None:
        self._stops = stops
        self._state = 0
        self.scanned = 0
        """Characters read so far."""

    @property
    def held(self) -> int:
        """Number of the last characters that may be the beginning of a stop string."""
        return self._stops.depth[self._state]

    def push(self, text: str) -> StopMatch | None:
        """Reads text and returns the match that ends it; None: no stop string is complete.

        Nothing may be pushed after a match.
        """
        stops, state = self._stops, self._state
        if state == 0 and not stops.first.search(text):
            self.scanned += len(text)
            return None
        for offset, character in enumerate(text, start=1):
            state = stops.step(state, character)
            stop = stops.found[state]
            if stop is not None:
                end = self.scanned + offset
                return StopMatch(stop, end - len(stop), end)
        self._state = state
        self.scanned += len(text)
        return None
