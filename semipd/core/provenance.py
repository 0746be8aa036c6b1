"""The origin of a figure, kept beside every figure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Provenance:
    """Describes the machine and the program that measured. A field that is not known is empty."""

    command: str
    commit: str
    """Empty where the program does not run from its repository and nobody says."""
    uncommitted_changes: bool
    date: str
    """UTC, ISO 8601."""
    python: str
    system: str
    cpu: str
    cpus: int
    """CPUs that this process may use."""
    gpus: tuple[str, ...]
    """Name, memory and driver of each, as nvidia-smi tells them."""
    versions: dict[str, str]
