"""Log lines of any process: to standard error, by format and level, with the process's name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

CODE = """
import logging, structlog
from semipd.core.config import ServerConfig
from semipd.wire.logging import configure_logging
configure_logging(ServerConfig(log_format={format!r}, log_level="info"), "gateway.7")
log = structlog.get_logger()
log.debug("too quiet")
log.info("accepted", request_id="r-1")
logging.getLogger("library").warning("from a library")
secret = "a prompt"
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
"""


@pytest.fixture
def logged() -> Callable[[str], str]:
    """Returns a function that logs in a fresh process, in a format, and returns what came to standard error."""

    def run(form: str) -> str:
        command = [sys.executable, "-c", CODE.format(format=form)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == ""
        return done.stderr

    return run


def test_json_is_one_object_a_line(logged: Callable[[str], str]) -> None:
    accepted, library, failed = map(json.loads, logged("json").splitlines())
    assert accepted["event"] == "accepted"
    assert (accepted["process"], accepted["level"], accepted["request_id"]) == ("gateway.7", "info", "r-1")
    assert (library["event"], library["level"], library["process"]) == ("from a library", "warning", "gateway.7")
    assert "ZeroDivisionError" in failed["exception"]


def test_the_console_shows_the_same_without_local_variables(logged: Callable[[str], str]) -> None:
    text = logged("console")
    assert "accepted" in text
    assert "request_id=r-1" in text
    assert "ZeroDivisionError" in text
    assert "a prompt" not in text
    assert "too quiet" not in text
