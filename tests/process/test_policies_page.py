"""Follows docs/policies.md as a newcomer does: runs every command and every code block of the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from semipd.policies.template import files
from support.server import RunningServer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "policies.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Yields the folder in which the page's first three commands were run; pip put the package into its `site`."""
    made = tmp_path_factory.mktemp("newcomer")
    site = made / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    run = {
        "semipd": [sys.executable, "-m", "semipd.cli.main", *COMMANDS[0].split()[1:]],
        "pip": [*pip, f"./{COMMANDS[1].split()[-1]}"],  # into a folder of the test's, not into this environment
        "pytest": [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, *COMMANDS[2].split()[1:]],
    }
    for command in run.values():
        environment = {**os.environ, "PYTHONPATH": str(site)}
        done = subprocess.run(command, cwd=made, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return made


def test_the_commands_are_those_that_are_run() -> None:
    assert [command.split()[:3] for command in COMMANDS] == [
        ["semipd", "policies", "new"],
        ["pip", "install", "-e"],
        ["pytest", "my-policy"],
        ["semipd", "serve", "--policy"],
        ["semipd", "policies", "show"],
        ["semipd", "policies", "use"],
        ["semipd", "policies", "--target"],
    ]


def test_the_class_and_the_entry_point_shown_are_those_that_are_written() -> None:
    written = files("my-policy")
    (entry_point,) = blocks("toml")
    assert entry_point in written["pyproject.toml"]
    shown = next(block for block in blocks("python") if block.startswith("# my_policy.py\n"))
    assert shown.removeprefix("# my_policy.py\n") in written["my_policy.py"]


def test_the_other_code_runs(tmp_path: Path) -> None:
    for block in blocks("python"):
        (tmp_path / block.partition("\n")[0].removeprefix("# ")).write_text(block)
    assert {file.name for file in tmp_path.iterdir()} == {
        "my_policy.py",
        "patient.py",
        "no_hope.py",
        "by_deadline.py",
        "tried.py",
    }
    done = subprocess.run([sys.executable, "tried.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours, theirs = (int(line.split()[1]) for line in done.stdout.splitlines())
    assert ours > theirs


def with_package(folder: Path) -> str:
    """Returns a PYTHONPATH on which the newcomer's package is found."""
    return os.pathsep.join([str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_its_options_are_shown(folder: Path) -> None:
    shown = semipd(*COMMANDS[4].split()[1:], path=with_package(folder))
    rows = [line.split()[:3] for line in shown.splitlines() if line.startswith(("decode", "chunk"))]
    assert rows == [["decode", "40", "%"], ["chunk", "512", "tokens"]]


def test_the_policy_serves_and_is_changed(folder: Path) -> None:
    path = with_package(folder)
    serve, _show, use, at_work = (command.split()[1:] for command in COMMANDS[3:])
    with RunningServer(*serve[1:], environment={"PYTHONPATH": path}) as server, server.client() as client:
        assert client.generate("The harbour", max_tokens=5, ignore_eos=True).usage.output_tokens == 5
        said = semipd(*use, "--target", server.address)
        assert said == "my-policy is at work; before it was my-policy\n"
        assert client.generate("The harbour", max_tokens=5, ignore_eos=True).usage.output_tokens == 5
        assert "my-policy" in semipd(*at_work[:-1], server.address)


def semipd(*arguments: str, path: str | None = None) -> str:
    environment = os.environ if path is None else {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-m", "semipd.cli.main", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout
