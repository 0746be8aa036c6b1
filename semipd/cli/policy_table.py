"""Prints policies, or the options of one, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from semipd.policies.registry import discover, find_policy, policy_options


@dataclass(frozen=True, slots=True)
class PolicyRow:
    name: str
    summary: str
    package: str
    active: bool | None = None
    """True: the server runs it; None: no server was asked."""


def installed() -> list[PolicyRow]:
    """Lists the policies of this environment. One that can't be imported says why in its summary."""
    return [PolicyRow(entry.name, entry.summary, entry.distribution) for entry in discover().values()]


def as_json(rows: Sequence[PolicyRow]) -> str:
    return json.dumps([asdict(row) for row in rows], ensure_ascii=False)


def show(rows: Sequence[PolicyRow], console: Console | None = None) -> None:
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


@dataclass(frozen=True, slots=True)
class OptionRow:
    name: str
    default: Any
    """None: without the option something else decides, as `help` says."""
    unit: str
    allowed: str
    help: str


@dataclass(frozen=True, slots=True)
class Description:
    """One policy with its options."""

    name: str
    summary: str
    package: str
    options: tuple[OptionRow, ...]


def described(name: str) -> Description:
    """Describes a policy of this environment. Raises ConfigError where there is none or where it can't be loaded."""
    cls = find_policy(name)
    entry = discover()[name]
    options = policy_options(name, cls).values()
    rows = tuple(OptionRow(o.name, o.default, o.unit, o.allowed, o.help) for o in options)
    return Description(name, entry.summary, entry.distribution, rows)


def description_as_json(found: Description) -> str:
    return json.dumps(asdict(found), ensure_ascii=False)


def show_description(found: Description, console: Console | None = None) -> None:
    console = console or Console()
    console.print(Text(found.name, style="bold"), Text(found.package, style="dim"))
    console.print(Text(found.summary))
    if not found.options:
        console.print(Text("It has no options.", style="dim"))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("option", "default", "unit", "allowed", "what it does"):
        table.add_column(heading, no_wrap=heading in {"option", "default", "unit"})
    for row in found.options:
        cells = [_shown(row.default), row.unit, row.allowed, row.help]
        table.add_row(Text(row.name, style="bold"), *[Text(cell) for cell in cells])
    console.print()
    console.print(table)


def _shown(default: Any) -> str:
    if default is None:
        return "none"
    return f"{default:g}" if isinstance(default, float) else str(default)
