from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from semipd import __version__
from semipd.cli.main import app
from semipd.cli.terminal import harmless

COMMANDS = ("serve", "generate", "chat", "demo", "doctor", "policies")


def modules_after(*command: str) -> set[str]:
    """Returns the modules that a fresh process has imported when the command is done."""
    code = "import sys; from semipd.cli.main import app; app(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_and_version_start_fast() -> None:
    imported = modules_after("--version")
    assert not {"torch", "grpc", "semipd_client", "rich.console", "zmq"} & imported


def test_policies_needs_no_torch_and_no_grpc() -> None:
    assert not {"torch", "grpc"} & modules_after("policies")


def test_what_talks_to_a_server_needs_no_torch() -> None:
    code = "import sys, semipd.cli.once, semipd.cli.conversation, semipd.cli.child; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_explains_itself(runner: CliRunner, command: str) -> None:
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert command in runner.invoke(app, ["--help"]).stdout


def test_version(runner: CliRunner) -> None:
    assert runner.invoke(app, ["--version"]).stdout.strip() == __version__


def test_an_unknown_command_is_wrong_usage(runner: CliRunner) -> None:
    assert runner.invoke(app, ["serv"]).exit_code == 2


def test_an_answer_cannot_steer_the_terminal() -> None:
    assert harmless("a\x1b[2Jb\r\x07\x9bc\n\td é 漢") == "a[2Jbc\n\td é 漢"
