"""Stop strings: the first that is complete wins, wherever the text is cut into pieces."""

from __future__ import annotations

import random

import pytest

from semipd.gateway.stop_strings import StopMatch, StopScanner, StopStrings


def first_match(stops: list[str], text: str) -> StopMatch | None:
    """Finds by trying everything what the scanner must find."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return StopMatch(longest, end - len(longest), end)
    return None


def held_by_definition(stops: list[str], text: str) -> int:
    return max(n for n in range(len(text) + 1) if n == 0 or any(s.startswith(text[-n:]) for s in stops))


@pytest.mark.parametrize(
    ("stops", "text", "match"),
    [
        (["END"], "the END.", StopMatch("END", 4, 7)),
        (["bcd", "c"], "abcd", StopMatch("c", 2, 3)),
        (["abc", "bc"], "xabc", StopMatch("abc", 1, 4)),
        (["aab"], "aaab", StopMatch("aab", 1, 4)),
        (["abcabd"], "abcabcabd", StopMatch("abcabd", 3, 9)),
        (["]-^\\"], "a]-^\\b", StopMatch("]-^\\", 1, 5)),
        (["x"], "abc", None),
    ],
)
def test_the_first_complete_stop_is_found(stops: list[str], text: str, match: StopMatch | None) -> None:
    assert StopScanner(StopStrings(stops)).push(text) == match


def test_any_cut_of_any_text_gives_the_same_match_and_holds_no_more_than_needed() -> None:
    rng = random.Random(5)
    for _ in range(500):
        stops = ["".join(rng.choices("ab", k=rng.randint(1, 4))) + rng.choice(["", "c"]) for _ in range(3)]
        text = "".join(rng.choices("abcd", weights=[4, 4, 1, 2], k=30))
        scanner, read, found = StopScanner(StopStrings(stops)), 0, None
        while read < len(text) and found is None:
            piece = text[read : read + rng.randint(1, 4)]
            found = scanner.push(piece)
            read += len(piece)
            if found is None:
                assert scanner.held == held_by_definition(stops, text[:read])
        assert found == first_match(stops, text)
