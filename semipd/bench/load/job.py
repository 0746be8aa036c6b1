"""The messages between the parent and its load processes: JSON lines over the child's standard input and output.

Parent to child: a Job, then Start. Child to parent: Ready, Tick again and again, Done; or LoadFailed instead of any.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from semipd.bench.arrivals import TraceArrival
from semipd.bench.scoring.records import RequestRecord
from semipd.bench.scoring.target_info import TargetInfo
from semipd.bench.scoring.validity import ClientUse
from semipd.bench.settings import RunSettings
from semipd.core.plain import from_plain, to_plain

LINE_LIMIT = 1 << 30
"""Bytes of one message: a child's records with all their gaps come in one."""


@dataclass(frozen=True, slots=True)
class Job:
    """The share of one load process. Times are seconds after the start, which comes later."""

    settings: RunSettings
    target: TargetInfo
    open: tuple[TraceArrival, ...]
    """Each is sent at its time, whatever became of the others."""
    chains: tuple[tuple[TraceArrival, ...], ...]
    """The first of each chain is sent at its time, each other when the one before it has ended. Nothing of a chain is
    sent after the end of the duration, and what then still runs of it is given up."""


@dataclass(frozen=True, slots=True)
class Start:
    """`at` is of time.monotonic(), which all processes of a machine share."""

    at: float


@dataclass(frozen=True, slots=True)
class Ready:
    """Everything is imported, connected and written down."""

    requests: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Seconds since the start."""

    sent: int
    ended: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Done:
    records: tuple[RequestRecord, ...]
    use: ClientUse


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The child can't go on. `kind` is the name of the error's class in errors."""

    kind: str
    message: str


Message = Job | Start | Ready | Tick | Done | LoadFailed
KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in (Job, Start, Ready, Tick, Done, LoadFailed)}


def line_of(message: Message) -> bytes:
    return json.dumps([type(message).__name__, to_plain(message)], separators=(",", ":")).encode() + b"\n"


def parsed(line: bytes) -> Any:
    """The message in a line that `line_of` made. Raises ValueError where it is something else."""
    said = json.loads(line)
    if not isinstance(said, list) or len(said) != 2 or said[0] not in KINDS:
        raise ValueError("not a message of a load process")
    return from_plain(KINDS[said[0]], said[1], said[0])
