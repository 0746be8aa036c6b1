"""A server's private folder."""

from __future__ import annotations

from pathlib import Path

from semipd.wire.sockets import RunDir


def test_a_configuration_that_is_written_again_is_never_seen_half_written(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.keep("the first")
    with run_dir.config.open() as reader:
        run_dir.keep("the second")
        assert reader.read() == "the first", "who had it open still reads all of it"
    assert run_dir.config.read_text() == "the second"
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
