"""Policies as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from semipd.policies.registry import discover


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    summary: str
    package: str
    active: bool | None = None
    """True: the server runs it; None: no server was asked."""


def installed() -> list[Row]:
    """Lists the policies of this environment. One that can't be imported says why in its summary."""
    return [Row(entry.name, entry.summary, entry.distribution) for entry in discover().values()]


def as_json(rows: Sequence[Row]) -> str:
    return json.dumps([asdict(row) for row in rows], ensure_ascii=False)


def show(rows: Sequence[Row], console: Console | None = None) -> None:
    served = any(row.active is not None for row in rows)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", "policy", "what it does", "package") if served else ("policy", "what it does", "package"):
        table.add_column(heading)
    for row in rows:
        cells = [Text(row.name, style="bold"), Text(row.summary), Text(row.package, style="dim")]
        mark = [Text("●" if row.active else " ", style="green")] if served else []
        table.add_row(*mark, *cells)
    (console or Console()).print(table)
    if served:
        (console or Console()).print(Text("● at work", style="dim"))
