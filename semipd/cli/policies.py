"""`semipd policies`: which policies there are."""

from __future__ import annotations

from typing import Annotated

import typer

from semipd.cli import options as opt


def policies(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
    target: opt.Target = None,
    host: opt.Host = None,
    port: opt.Port = None,
    api_key: opt.ApiKey = None,
    tls: opt.Tls = False,
    tls_ca: opt.TlsCa = None,
) -> None:
    """List the policies that are installed here; with --target, those of that server and which one is at work.

    A policy decides which requests run when, and on how much of the device: `semipd serve --policy NAME`.
    """
    from semipd.cli import policy_table as table

    if target is None and host is None and port is None:
        rows = table.installed()
    else:
        from semipd.cli.connection import address, connect, told

        server = address(target, host, port)
        with told(server), connect(server, api_key, tls, tls_ca, timeout=10) as client:
            rows = [table.Row(p.name, p.summary, p.distribution, p.active) for p in client.policies()]
    if as_json:
        typer.echo(table.as_json(rows))
    else:
        table.show(rows)
