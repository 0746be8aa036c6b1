"""A benchmark keeps parts of the log of the server that it started."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))

from figures.server_process import KEPT_COMPLAINTS, KEPT_LOG, shorten


def line(number: int, level: str = "info") -> str:
    return json.dumps({"number": number, "event": "a step", "level": level}) + "\n"


def kept(path: Path) -> list[int]:
    """The numbers of the lines that are there after shortening, each of which must be whole."""
    shorten(path)
    lines = path.read_text().splitlines()
    return [json.loads(entry)["number"] for entry in lines if not entry.startswith("...")]


def test_a_short_log_stays_as_it_is(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(line(0) + "not from our logger\n" + line(1, "error"))
    before = log.read_text()
    shorten(log)
    assert log.read_text() == before


def test_a_long_log_keeps_both_ends_and_what_went_wrong_between_them(tmp_path: Path) -> None:
    log = tmp_path / "log"
    levels = {5_000: "warning", 5_001: "error", 6_000: "critical"}
    log.write_text("".join(line(n, levels.get(n, "info")) for n in range(10_000)))
    numbers = kept(log)
    assert numbers == sorted(set(numbers))
    middle = [n for n in numbers if 4_000 < n < 7_000]
    assert middle == sorted(levels)
    assert (numbers[0], numbers[-1]) == (0, 9_999)
    assert log.stat().st_size < 2 * KEPT_LOG + 1_000


def test_of_too_many_complaints_the_first_and_the_last_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(line(n, "warning" if 4_000 <= n < 7_000 else "info") for n in range(10_000)))
    complaints = [n for n in kept(log) if 4_000 <= n < 7_000]
    half = KEPT_COMPLAINTS // 2
    assert complaints == [*range(4_000, 4_000 + half), *range(7_000 - half, 7_000)]
