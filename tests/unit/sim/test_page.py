"""Runs what docs/simulate.md shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from semipd.cli.main import app

PAGE = (Path(__file__).parents[3] / "docs" / "simulate.md").read_text()


def test_its_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/simulate.md", "exec"), {})
    assert "inside the tight SLO" in capsys.readouterr().out


def test_its_commands_are_there() -> None:
    shown = set(re.findall(r"`(--[a-z-]+)`", PAGE))
    helps = "".join(CliRunner().invoke(app, [*c, "--help"]).output for c in (["simulate"], ["profile"]))
    assert {option for option in shown if option not in helps} == set()


def test_its_first_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    block = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)[0]
    for line in block.splitlines():
        words = line.partition("#")[0].split()[1:]
        if words[:2] == ["simulate", "goodput"]:
            words += ["--tolerance", "0.3", "--repeats", "1", "--duration", "10"]
        if "--duration" in words:
            words[words.index("--duration") + 1] = "10"
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (line, result.output)
