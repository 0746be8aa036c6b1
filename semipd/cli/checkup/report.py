"""Findings as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from semipd.cli.checkup.finding import Finding, State

SIGNS = {
    State.GOOD: Text("✓", "green"),
    State.LESS: Text("!", "yellow"),
    State.NEEDLESS: Text("·", "dim"),
    State.BAD: Text("✗", "bold red"),
}


def can_serve(findings: Sequence[Finding]) -> bool:
    return all(f.state is not State.BAD for f in findings)


def as_json(findings: Sequence[Finding]) -> str:
    return json.dumps({"can_serve": can_serve(findings), "findings": [asdict(f) for f in findings]}, ensure_ascii=False)


def show(findings: Sequence[Finding], console: Console | None = None) -> None:
    console = console or Console(highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", "what", "found", "what follows for the server"):
        table.add_column(heading)
    for f in findings:
        table.add_row(SIGNS[f.state], Text(f.name), Text(f.value), Text(f.consequence, style="dim"))
    console.print(table)
    console.print()
    console.print(conclusion(findings))


def conclusion(findings: Sequence[Finding]) -> Text:
    if not can_serve(findings):
        missing = ", ".join(f.name for f in findings if f.state is State.BAD)
        return Text(f"A server can't run here: {missing}.", style="bold red")
    if any(f.state is State.LESS for f in findings):
        return Text("A server can run here; what is marked ! would make it better.", style="yellow")
    return Text("A server can run here: semipd serve", style="green")
