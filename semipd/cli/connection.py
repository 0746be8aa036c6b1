"""Reaches a server and tells in people's words what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from semipd.cli import exits
from semipd.cli.options import DEFAULT_HOST, DEFAULT_PORT
from semipd.cli.terminal import complain
from semipd_client import Client, SemipdClientError, TlsOptions, Unauthenticated, Unavailable


def address(target: str | None, host: str | None, port: int | None) -> str:
    """HOST:PORT. Raises typer.BadParameter where the options contradict one another."""
    if target is None:
        name = host or DEFAULT_HOST
        return f"[{name}]:{port or DEFAULT_PORT}" if ":" in name else f"{name}:{port or DEFAULT_PORT}"
    if host is not None or port is not None:
        raise typer.BadParameter("give --target, or --host and --port, not both")
    return target if ":" in target else f"{target}:{DEFAULT_PORT}"


def connect(
    target: str, api_key: str | None = None, tls: bool = False, tls_ca: Path | None = None, timeout: float | None = None
) -> Client:
    options = TlsOptions(ca_file=tls_ca) if tls or tls_ca else None
    return Client(target, api_key=api_key, tls=options, timeout=timeout)


@contextmanager
def errors_as_messages(target: str) -> Iterator[None]:
    """Turns what a call raises into one sentence on standard error and an exit code."""
    try:
        yield
    except Unavailable as error:
        complain(sentence(error, target))
        raise typer.Exit(exits.FAILED if error.reason else exits.UNREACHABLE) from None
    except SemipdClientError as error:
        complain(sentence(error, target))
        raise typer.Exit(exits.FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(exits.INTERRUPTED) from None


def sentence(error: SemipdClientError, target: str) -> str:
    if isinstance(error, Unavailable) and not error.reason:
        return f"No semipd server answers at {target}. Start one with `semipd serve`, or name another with --target."
    if isinstance(error, Unauthenticated):
        return f"{target} refused: {error}. Give the key with --api-key or in SEMIPD_API_KEY."
    text = f"{error} ({error.reason})" if error.reason else str(error)
    if error.retry_after_s is not None:
        text += f"; try again in {error.retry_after_s:g} s"
    return text
