"""Traces are the published ones, byte for byte, and bad files are refused by line and field."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from semipd.bench.errors import InputError
from semipd.bench.traces import (
    TRACES,
    TraceEntry,
    check_sendable,
    load_trace,
    make_trace,
    read_trace,
    scaled,
    write_trace,
)

PUBLISHED = {
    "chat": "c642515cc7c7cb21549994e21e4e32374915def8bb15458c25c031b9bf81380e",
    "long": "22dd30cbbc2d5b5d0ea7196aa493635fdc722904abc7a177cf6656633db71a23",
    "mixed": "71002f25c65456a656d36488d079206583ccfef6f911f195f2c2d7dc1e88a86a",
}
"""SHA-256 of the published files."""

GOOD = '{"prompt_len": 8, "output_len": 4, "ttft_slo_s": 0.1, "tpot_slo_s": 0.04}'


@pytest.mark.parametrize("name", sorted(TRACES))
def test_a_trace_that_ships_is_the_published_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.jsonl"
    write_trace(make_trace(name), path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == PUBLISHED[name]
    assert read_trace(path) == make_trace(name) == load_trace(name)


def test_blank_lines_are_no_requests(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(f"{GOOD}\n\n{GOOD}\n")
    assert load_trace(str(path)) == [TraceEntry(8, 4, 0.1, 0.04)] * 2


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "line 2: not JSON"),
        ("[8, 4]", "line 2: not a JSON object"),
        (GOOD.replace('"prompt_len": 8, ', ""), "line 2: prompt_len is missing"),
        (GOOD.replace('"output_len": 4', '"output_len": -4'), "line 2: output_len .* not -4"),
        (GOOD.replace('"output_len": 4', '"output_len": 0'), "line 2: output_len"),
        (GOOD.replace('"output_len": 4', '"output_len": 4.5'), "line 2: output_len"),
        (GOOD.replace('"output_len": 4', '"output_len": true'), "line 2: output_len"),
        (GOOD.replace('"output_len": 4', '"output_len": null'), "line 2: output_len"),
        (GOOD.replace("0.1", '"0.1"'), "line 2: ttft_slo_s"),
        (GOOD.replace("0.1", "NaN"), "line 2: ttft_slo_s"),
        (GOOD.replace("0.04", "0"), "line 2: tpot_slo_s"),
        (GOOD.replace("0.04", "Infinity"), "line 2: tpot_slo_s"),
        (GOOD.replace("}", ', "priority": 0.5}'), "line 2: priority must be a whole number, not 0.5"),
        (GOOD.replace("}", ', "samples": 0}'), "line 2: samples"),
        (GOOD.replace("}", ', "deadline_s": 0}'), "line 2: deadline_s"),
        (GOOD.replace("}", ', "cancel_after_s": null}'), "line 2: cancel_after_s"),
    ],
)
def test_a_bad_line_is_named_with_its_field(line: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(InputError, match=f"bad.jsonl, {named}"):
        read_trace(path)


def test_what_only_the_simulator_plays_is_read_and_written_and_never_sent(tmp_path: Path) -> None:
    entries = [
        TraceEntry(8, 4, 0.1, 0.04),
        TraceEntry(8, 4, 0.1, 0.04, priority=-1, deadline_s=2.0, cancel_after_s=1.5, samples=3),
    ]
    path = tmp_path / "t.jsonl"
    write_trace(entries, path)
    assert "samples" not in path.read_text().splitlines()[0]
    assert read_trace(path) == entries
    assert scaled(entries, 2.0)[1] == TraceEntry(16, 8, 0.1, 0.04, -1, 2.0, 1.5, 3)
    check_sendable(entries[:1])
    with pytest.raises(InputError, match="has a priority"):
        check_sendable(entries)


def test_a_trace_without_requests_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    with pytest.raises(InputError, match="no requests"):
        read_trace(path)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bytes.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_trace(path)


def test_a_missing_trace_is_told_with_those_that_ship(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing.jsonl: no such trace file.*chat"):
        load_trace(str(tmp_path / "nothing.jsonl"))


def test_scaled_lengths_stay_at_least_one_and_slos_stay() -> None:
    assert scaled([TraceEntry(100, 3, 0.5, 0.04)], 0.1) == [TraceEntry(10, 1, 0.5, 0.04)]
