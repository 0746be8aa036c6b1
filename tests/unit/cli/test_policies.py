from __future__ import annotations

import json

from fake_server import FakeServer
from typer.testing import CliRunner

from semipd.cli.main import app
from semipd.policies.registry import discover


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
    (line,) = [line for line in result.stdout.splitlines() if "mine" in line]
    assert line.startswith("●")
    rows = json.loads(runner.invoke(app, ["policies", "--target", server.address, "--json"]).stdout)
    assert [(row["name"], row["active"]) for row in rows] == [("fcfs", False), ("mine", True)]


def test_no_server_there(runner: CliRunner) -> None:
    assert runner.invoke(app, ["policies", "--port", "1"]).exit_code == 3
