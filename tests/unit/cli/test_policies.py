from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_server import FakeServer
from typer.testing import CliRunner

from semipd.cli.main import app
from semipd.policies.registry import discover
from semipd_client._proto.semipd.v1 import admin_pb2


def test_what_is_installed(runner: CliRunner) -> None:
    result = runner.invoke(app, ["policies"])
    assert result.exit_code == 0
    for name in discover():
        assert name in result.stdout


def test_as_json(runner: CliRunner) -> None:
    rows = {row["name"]: row for row in json.loads(runner.invoke(app, ["policies", "--json"]).stdout)}
    assert {"fcfs", "static"} <= set(rows)
    assert rows["fcfs"]["package"] == "semipd"
    assert rows["fcfs"]["summary"]
    assert rows["fcfs"]["active"] is None


def test_those_of_a_server_and_the_one_at_work(runner: CliRunner, server: FakeServer) -> None:
    result = runner.invoke(app, ["policies", "--target", server.address])
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if "mine" in line]
    assert line.startswith("●")
    rows = json.loads(runner.invoke(app, ["policies", "--target", server.address, "--json"]).stdout)
    assert [(row["name"], row["active"]) for row in rows] == [("fcfs", False), ("mine", True)]


def test_the_options_of_a_policy(runner: CliRunner) -> None:
    shown = runner.invoke(app, ["policies", "show", "static"], env={"COLUMNS": "200"}).stdout
    (chunk,) = [line.split() for line in shown.splitlines() if line.startswith("chunk")]
    assert chunk[:7] == ["chunk", "512", "tokens", "a", "whole", "number,", "at"]
    (mode,) = [line for line in shown.splitlines() if line.startswith("mode")]
    assert "one of split, turns" in mode


def test_the_options_of_a_policy_as_json(runner: CliRunner) -> None:
    found = json.loads(runner.invoke(app, ["policies", "show", "adaptive", "--json"]).stdout)
    assert (found["name"], found["package"]) == ("adaptive", "semipd")
    margin = next(row for row in found["options"] if row["name"] == "margin")
    assert (margin["default"], margin["unit"], margin["allowed"]) == (10.0, "%", "a number above 0, at most 90")


@pytest.mark.parametrize("name", discover())
def test_every_option_of_a_built_in_policy_has_help(runner: CliRunner, name: str) -> None:
    found = json.loads(runner.invoke(app, ["policies", "show", name, "--json"]).stdout)
    assert found["options"]
    assert all(row["help"].endswith(".") for row in found["options"])


def test_a_policy_that_is_not_there_has_no_options(runner: CliRunner) -> None:
    result = runner.invoke(app, ["policies", "show", "nobody"])
    assert result.exit_code == 2
    assert "installed: adaptive, chunked" in result.stderr


def test_no_server_there(runner: CliRunner) -> None:
    assert runner.invoke(app, ["policies", "--port", "1"]).exit_code == 3


def test_a_server_is_given_another_policy(runner: CliRunner, server: FakeServer) -> None:
    answer = server.answer
    server.answer = lambda question, context: (
        admin_pb2.SetPolicyResponse(previous="fcfs")
        if isinstance(question, admin_pb2.SetPolicyRequest)
        else answer(question, context)
    )
    result = runner.invoke(
        app,
        ["policies", "use", "mine", "--policy-option", "step=2", "--target", server.address],
        catch_exceptions=False,
    )
    assert result.exit_code == 0
    assert result.stdout == "mine is at work; before it was fcfs\n"
    (asked,) = [q for q in server.seen if isinstance(q, admin_pb2.SetPolicyRequest)]
    assert (asked.name, dict(asked.options)) == ("mine", {"step": "2"})


def test_an_option_without_a_value_is_wrong_usage(runner: CliRunner) -> None:
    result = runner.invoke(app, ["policies", "use", "mine", "--policy-option", "step"])
    assert result.exit_code == 2
    assert "NAME=VALUE" in result.stderr


def test_a_new_policy_is_begun(runner: CliRunner, tmp_path: Path) -> None:
    result = runner.invoke(app, ["policies", "new", "my-policy", "--folder", str(tmp_path / "mine")])
    assert result.exit_code == 0
    assert {f.name for f in (tmp_path / "mine").iterdir()} == {"pyproject.toml", "my_policy.py", "test_my_policy.py"}
    assert "semipd serve --policy my-policy" in result.stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [("My Policy", "small letters"), ("../evil", "small letters"), ("fcfs", "installed already")],
)
def test_a_name_that_cannot_be_is_refused(runner: CliRunner, tmp_path: Path, name: str, said: str) -> None:
    result = runner.invoke(app, ["policies", "new", name, "--folder", str(tmp_path / "mine")])
    assert result.exit_code == 2
    assert said in result.stderr
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(runner: CliRunner, tmp_path: Path) -> None:
    result = runner.invoke(app, ["policies", "new", "my-policy", "--folder", str(tmp_path)])
    assert result.exit_code == 2
    assert not list(tmp_path.iterdir())
