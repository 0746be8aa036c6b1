"""docs/policies.md, as a newcomer follows it: every command and code block of the page."""

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
    """Where the page's commands were run up to the server's; `site` is where pip put the package."""
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
    by_deadline, tried = (block for block in blocks("python") if not block.startswith("# my_policy.py"))
    (tmp_path / "by_deadline.py").write_text(by_deadline)
    (tmp_path / "tried.py").write_text(tried)
    done = subprocess.run([sys.executable, "tried.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours, theirs = (int(line.split()[1]) for line in done.stdout.splitlines())
    assert ours > theirs


def test_the_policy_serves_and_is_changed(folder: Path) -> None:
    path = os.pathsep.join([str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    serve, use, show = (command.split()[1:] for command in COMMANDS[3:])
    with RunningServer(*serve[1:], environment={"PYTHONPATH": path}) as server, server.client() as client:
        assert client.generate("The harbour", max_tokens=5, ignore_eos=True).usage.output_tokens == 5
        said = semipd(*use, "--target", server.address)
        assert said == "my-policy is at work; before it was my-policy\n"
        assert client.generate("The harbour", max_tokens=5, ignore_eos=True).usage.output_tokens == 5
        assert "my-policy" in semipd(*show[:-1], server.address)


def semipd(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "semipd.cli.main", *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout
