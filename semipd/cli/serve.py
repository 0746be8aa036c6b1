"""`semipd serve`: every field of ServerConfig as an option of the same name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Annotated, Any, Literal

import typer

from semipd.cli import exits
from semipd.core.config import LOGS, SCHEDULING, ServerConfig, Setting, settings
from semipd.core.errors import ConfigError, StartError

POLICY_OPTION = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="An option of the policy; `semipd policies show NAME` lists them. May be given several times.",
        rich_help_panel=SCHEDULING,
    ),
]
ANNOUNCE_FD = Annotated[
    int | None,
    typer.Option(
        help='Write {"address": "HOST:PORT"} to this file descriptor when requests are served; for scripts.',
        rich_help_panel=LOGS,
    ),
]


def with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Gives `serve` the signature that typer reads: every field of ServerConfig, and the two options beside them."""
    defaults = {f.name: f.default for f in fields(ServerConfig)}
    found = [_parameter(name, _annotation(defaults[name], about), defaults[name]) for name, about in settings().items()]
    after = 1 + [p.name for p in found].index("policy")
    found.insert(after, _parameter("policy_option", POLICY_OPTION, None))
    found.append(_parameter("announce_fd", ANNOUNCE_FD, None))
    signature = inspect.Signature(found)
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in found}
    return function


def _parameter(name: str, annotation: Any, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _annotation(default: object, about: Setting) -> Any:
    kind: Any = Literal[about.choices] if about.choices else type(default)
    return Annotated[kind, typer.Option(help=about.help, rich_help_panel=about.group)]


@with_settings
def serve(
    *,
    policy_option: list[str] | None = None,
    announce_fd: int | None = None,
    **given: Any,
) -> None:
    """Start a server. Without options: the bundled model on 127.0.0.1:50051.

    Ctrl-C (or SIGTERM) refuses new requests, lets running ones finish and exits; a second one ends at once.
    Exit code: 0 stopped, 1 it could not start, 2 wrong usage.
    """
    from rich.console import Console

    from semipd.cli.serve_console import RichServeConsole
    from semipd.cli.terminal import complain
    from semipd.coordinator import server

    try:
        config = ServerConfig(**given, policy_options=named_values(policy_option or ()))
        with RichServeConsole(Console(stderr=True, highlight=False, soft_wrap=True), announce_fd) as console:
            code = server.serve(config, console)
    except ConfigError as error:
        complain(str(error))
        raise typer.Exit(exits.USAGE) from None
    except StartError as error:
        complain(str(error))
        raise typer.Exit(exits.FAILED) from None
    raise typer.Exit(code)


def named_values(given: Iterable[str]) -> dict[str, str]:
    """["prefill=40"] -> {"prefill": "40"}. Raises ConfigError."""
    values = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise ConfigError(f"--policy-option: must be NAME=VALUE; got {text!r}")
        if name in values:
            raise ConfigError(f"--policy-option: {name} is given twice")
        values[name] = value
    return values
