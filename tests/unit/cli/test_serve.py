from __future__ import annotations

import inspect
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
from typer.testing import CliRunner

import semipd.coordinator.server
from semipd.cli.main import app
from semipd.cli.serve import serve
from semipd.core import config as core
from semipd.core.config import ServerConfig
from semipd.core.errors import CheckpointError, ConfigError


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ServerConfig]:
    """The configurations with which a server would have run."""
    configs: list[ServerConfig] = []

    def note(config: ServerConfig, _console: object) -> int:
        configs.append(config)
        return 0

    monkeypatch.setattr(semipd.coordinator.server, "serve", note)
    return configs


def fail_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(semipd.coordinator.server, "serve", fail)


def test_without_options_the_defaults_hold(runner: CliRunner, started: list[ServerConfig]) -> None:
    assert runner.invoke(app, ["serve"]).exit_code == 0
    assert started == [ServerConfig()]


def test_every_field_is_an_option_with_the_same_default() -> None:
    options = {p.name: p.default for p in inspect.signature(serve).parameters.values()}
    assert options.pop("announce_fd") is None
    assert options.pop("policy_option") is None
    assert options == {f.name: f.default for f in fields(ServerConfig) if f.name != "policy_options"}


def test_the_choices_of_each_option_are_those_of_the_configuration() -> None:
    hints = get_type_hints(serve)
    chosen = {name: get_args(hints[name]) for name, about in core.settings().items() if about.choices}
    assert chosen == {name: about.choices for name, about in core.settings().items() if about.choices}
    assert set(chosen) == {"load_format", "dtype", "device", "partition", "mps", "log_format", "log_level"}


def test_options_reach_the_configuration(runner: CliRunner, started: list[ServerConfig]) -> None:
    given = "--model m --port 0 --policy static --policy-option prefill=40 --policy-option decode=a=b --no-spare-worker"
    assert runner.invoke(app, ["serve", *given.split(), "--kv-memory-gb", "0.5"]).exit_code == 0
    expected = ServerConfig(
        model="m",
        port=0,
        policy="static",
        policy_options={"prefill": "40", "decode": "a=b"},
        spare_worker=False,
        kv_memory_gb=0.5,
    )
    assert started == [expected]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--port", "70000"],
        ["--dtype", "int4"],
        ["--policy-option", "prefill"],
        ["--policy-option", "a=1", "--policy-option", "a=2"],
        ["--no-such-option"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2_before_anything_starts(
    runner: CliRunner, started: list[ServerConfig], wrong: list[str]
) -> None:
    result = runner.invoke(app, ["serve", *wrong])
    assert result.exit_code == 2
    assert wrong[0] in result.stderr
    assert started == []


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError("--kv-pages: too few"), 2), (CheckpointError("config.json: act"), 1)]
)
def test_what_keeps_a_server_from_starting_is_one_line_and_a_code(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    fail_with(monkeypatch, error)
    result = runner.invoke(app, ["serve"])
    assert (result.exit_code, result.stderr, result.stdout) == (code, f"{error}\n", "")


def test_the_servers_exit_code_is_the_commands(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semipd.coordinator.server, "serve", lambda *_: 7)
    assert runner.invoke(app, ["serve"]).exit_code == 7
