"""The docs tell the truth about commands, make targets, options and metrics."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from semipd.cli.main import app
from semipd.coordinator.metrics import Metrics
from semipd.core.config import option, settings

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OPERATING = (ROOT / "docs/operating.md").read_text()


def commands(page: Path) -> list[str]:
    """Returns the lines of the page's shell blocks; a line that ends in a backslash goes on in the next."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    return [line.partition("  #")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def arguments(command: str) -> list[str] | None:
    """Returns what follows `semipd`; None: another command."""
    found = re.search(r"(?:^|&& |/)semipd (.*)", command)
    return shlex.split(found[1], comments=True) if found else None


SEMIPD = [(page.name, given) for page in PAGES for line in commands(page) if (given := arguments(line)) is not None]


@pytest.mark.parametrize(
    "given", [given for _, given in SEMIPD], ids=[f"{name}: {given[:2]}" for name, given in SEMIPD]
)
def test_a_command_of_the_docs_can_be_parsed(given: list[str]) -> None:
    """Options and subcommands are known; values are not looked at."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and given and given[0] in command.commands:
        command, given = command.commands[given[0]], given[1:]
    context = command.context_class(command)
    _values, rest, _order = command.make_parser(context).parse_args(list(given))
    assert not rest or not hasattr(command, "commands"), f"no such subcommand: {rest}"


def test_make_targets_of_the_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"\bmake ([a-z][a-z-]+)", "\n".join(commands(page)))}
    inline = {name for page in PAGES for name in re.findall(r"`make ([a-z][a-z-]+)`", page.read_text())}
    assert named | inline <= targets


def test_the_operators_page_has_every_metric_and_no_other() -> None:
    of_server = set()
    for metric in Metrics().registry.collect():
        of_server.add(metric.name + ("_total" if metric.type == "counter" else ""))
    assert set(re.findall(r"^\| `(semipd:\w+)", OPERATING, re.MULTILINE)) == of_server


def test_options_that_the_operators_page_names_exist() -> None:
    known = {f"--{option(name)}" for name in settings()} | {"--announce-fd", "--no-spare-worker", "--help"}
    assert set(re.findall(r"--[a-z][a-z-]+", OPERATING)) <= known
