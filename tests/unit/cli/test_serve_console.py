from __future__ import annotations

import io
import json
import os

import pytest
from rich.console import Console

from semipd.cli.serve_console import RichServeConsole


@pytest.fixture
def written() -> io.StringIO:
    return io.StringIO()


def lines(written: io.StringIO) -> list[str]:
    return written.getvalue().splitlines()


def test_without_a_terminal_loading_is_a_few_lines(written: io.StringIO) -> None:
    with RichServeConsole(Console(file=written)) as console:
        for done in range(0, 1001):
            console.loading(done * 1000, 1_000_000)
    assert [line.split()[2] for line in lines(written)] == ["25%", "50%", "75%", "100%"]


def test_a_second_loading_is_told_again(written: io.StringIO) -> None:
    with RichServeConsole(Console(file=written)) as console:
        console.loading(10, 10)
        console.loading(10, 10)
    assert len(lines(written)) == 2


def test_nothing_to_load_is_no_error(written: io.StringIO) -> None:
    with RichServeConsole(Console(file=written)) as console:
        console.loading(0, 0)
    assert "100%" in written.getvalue()


def test_on_a_terminal_loading_is_a_bar_that_goes_away_at_its_end(written: io.StringIO) -> None:
    terminal = Console(file=written, force_terminal=True, width=100)
    with RichServeConsole(terminal) as console:
        console.loading(500_000, 1_000_000)
        console.loading(1_000_000, 1_000_000)
        console.note("policy x is replaced")
    assert "loading weights" in written.getvalue()
    assert written.getvalue().rstrip().endswith("policy x is replaced")


def test_without_a_terminal_capturing_is_a_few_lines(written: io.StringIO) -> None:
    with RichServeConsole(Console(file=written)) as console:
        for done in range(1, 41):
            console.capturing(done, 40)
    assert lines(written) == [f"capturing graphs: {share}% of 40" for share in (25, 50, 75, 100)]


def test_graphs_of_a_worker_that_says_later_how_many_it_has_are_told_in_as_few_lines(written: io.StringIO) -> None:
    with RichServeConsole(Console(file=written)) as console:
        for done in range(1, 11):
            console.capturing(done, 10)
        for done in range(11, 31):
            console.capturing(done, 30)
    assert len(lines(written)) == 4


def test_on_a_terminal_capturing_is_a_bar_that_goes_away_when_the_server_is_ready(written: io.StringIO) -> None:
    """Also where the time for it was over before all were captured."""
    terminal = Console(file=written, force_terminal=True, width=100)
    with RichServeConsole(terminal) as console:
        console.loading(1, 1)
        console.capturing(3, 40)
        console.capturing(10, 60)
        console.ready("127.0.0.1:4242")
    before, _, after = written.getvalue().partition("ready: gRPC")
    assert "capturing graphs" in before
    assert "10/60" in before
    assert "capturing graphs" not in after


def test_a_server_that_fails_while_loading_leaves_the_terminal_as_it_was(written: io.StringIO) -> None:
    terminal = Console(file=written, force_terminal=True, width=100)

    def fail() -> None:
        with RichServeConsole(terminal) as console:
            console.loading(1, 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert written.getvalue().rindex(shown) > written.getvalue().rindex(hidden)


def test_what_looks_like_markup_is_told_as_it_is(written: io.StringIO) -> None:
    with RichServeConsole(Console(file=written)) as console:
        console.note("the policy [bold] did it")
    assert lines(written) == ["the policy [bold] did it"]


def test_ready_names_the_address_and_announces_it_once(written: io.StringIO) -> None:
    read, write = os.pipe()
    with RichServeConsole(Console(file=written), announce_fd=write) as console, os.fdopen(read) as pipe:
        console.ready("127.0.0.1:4242")
        console.ready("127.0.0.1:4242")
        assert [json.loads(line) for line in pipe] == [{"address": "127.0.0.1:4242"}]
    assert "127.0.0.1:4242" in written.getvalue()
