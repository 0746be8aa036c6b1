"""`semipd policies`: lists policies, shows the options of one, begins a new one, and changes a server's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from semipd.cli import exits
from semipd.cli import options as opt

policies_app = typer.Typer(
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@policies_app.callback(invoke_without_command=True)
def policies(
    context: typer.Context,
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
    `semipd policies show NAME` lists the options of one, `semipd policies new NAME` begins one of your own.
    `semipd policies use NAME` changes a running server's.
    """
    if context.invoked_subcommand is not None:
        return
    from semipd.cli import policy_table as table

    if target is None and host is None and port is None:
        rows = table.installed()
    else:
        from semipd.cli.connection import address, connect, errors_as_messages

        server = address(target, host, port)
        with errors_as_messages(server), connect(server, api_key, tls, tls_ca, timeout=10) as client:
            rows = [table.PolicyRow(p.name, p.summary, p.distribution, p.active) for p in client.policies()]
    if as_json:
        typer.echo(table.as_json(rows))
    else:
        table.show(rows)


@policies_app.command()
def show(
    name: Annotated[str, typer.Argument(help="A policy that is installed here.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show the options of a policy: default, unit, allowed values, and what each does.

    Give them as `--policy-option NAME=VALUE` to `semipd serve`, `semipd simulate` or `semipd policies use`.
    """
    from semipd.cli import policy_table as table
    from semipd.cli.terminal import complain
    from semipd.core.errors import ConfigError

    try:
        found = table.described(name)
    except ConfigError as error:
        complain(str(error))
        raise typer.Exit(exits.USAGE) from error
    if as_json:
        typer.echo(table.description_as_json(found))
    else:
        table.show_description(found)


@policies_app.command()
def new(
    name: Annotated[str, typer.Argument(help="As `semipd serve --policy` will call it, such as my-policy.")],
    folder: Annotated[
        Path | None, typer.Option(help="The folder to make. [dim]default: NAME, here[/]", show_default=False)
    ] = None,
) -> None:
    """Begin a policy of your own: a package with a policy that runs at once, and its test.

    docs/policies.md goes on from there. Nothing that exists is overwritten.
    """
    from semipd.cli.terminal import complain
    from semipd.policies.registry import discover
    from semipd.policies.template import files

    where = folder or Path(name)
    try:
        contents = files(name)
        if name in discover():
            raise ValueError(f"a policy named {name!r} is installed already")
        where.mkdir(parents=True)
    except (ValueError, OSError) as error:
        complain(f"there is {where} already; name another folder" if isinstance(error, FileExistsError) else str(error))
        raise typer.Exit(exits.USAGE) from error
    for file, text in contents.items():
        (where / file).write_text(text)
    typer.echo(f"""{where}: {", ".join(sorted(contents))}
  pip install -e {where}             # now it is found
  pytest {where}                     # it keeps the contract
  semipd serve --policy {name}""")


@policies_app.command()
def use(
    name: Annotated[str, typer.Argument(help="A policy that is installed where the server runs.")],
    policy_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An option of the policy. May be given several times."),
    ] = None,
    target: opt.Target = None,
    host: opt.Host = None,
    port: opt.Port = None,
    api_key: opt.ApiKey = None,
    tls: opt.Tls = False,
    tls_ca: opt.TlsCa = None,
) -> None:
    """Put a policy to work in a running server. No request is dropped."""
    from semipd.cli.connection import address, connect, errors_as_messages
    from semipd.cli.serve import named_values
    from semipd.cli.terminal import complain
    from semipd.core.errors import ConfigError

    try:
        chosen = named_values(policy_option or ())
    except ConfigError as error:
        complain(str(error))
        raise typer.Exit(exits.USAGE) from error
    server = address(target, host, port)
    with errors_as_messages(server), connect(server, api_key, tls, tls_ca, timeout=10) as client:
        before = client.set_policy(name, chosen)
    typer.echo(f"{name} is at work; before it was {before}")
