"""`semipd doctor`: what this machine has and lacks, and what follows."""

from __future__ import annotations

from typing import Annotated

import typer

from semipd.cli import exits


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Look at this machine: what it has and lacks, and what follows for a server on it.

    Exit code: 0 a server can run here, 1 it can't.
    """
    from semipd.cli.checkup import examine
    from semipd.cli.checkup.report import as_json as to_json
    from semipd.cli.checkup.report import can_serve, show

    findings = examine()
    if as_json:
        typer.echo(to_json(findings))
    else:
        show(findings)
    raise typer.Exit(exits.OK if can_serve(findings) else exits.FAILED)
