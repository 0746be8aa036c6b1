"""Saves what a section found, as soon as it is known."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from semipd.bench.provenance import provenance
from semipd.bench.scoring.score import distribution
from semipd.core.plain import to_plain

BINS_A_DECADE = 10


class Page:
    """`result` is what was measured, `figures` what goes into the table, by the keys of aims.AIMS."""

    def __init__(self, section: str, folder: Path, settings: dict[str, Any]) -> None:
        self.section = section
        self.folder = folder
        self.settings = settings
        self.result: dict[str, Any] = {}
        self.figures: dict[str, float] = {}
        self.error = ""
        self.needs_gpu = False
        """It was not measured, since there is none."""
        self.seconds = 0.0
        self._provenance = asdict(provenance())

    @property
    def path(self) -> Path:
        return self.folder / f"h200_{self.section}.json"

    def picture(self, name: str = "") -> Path:
        return self.folder / f"h200_{self.section}{name and '_'}{name}.png"

    def save(self) -> None:
        values = {
            "section": self.section,
            "provenance": self._provenance,
            "settings": self.settings,
            "seconds": round(self.seconds, 1),
            "error": self.error,
            "figures": self.figures,
            "result": self.result,
        }
        self.path.write_text(lines(to_plain(values)) + "\n", encoding="utf-8")


def lines(values: dict[str, Any]) -> str:
    """JSON with a line for each entry of the first two levels: short enough to read, and small."""

    def inner(value: Any) -> str:
        if isinstance(value, dict) and value:
            return "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n }"
        return json.dumps(value)

    return "{\n" + ",\n".join(f" {json.dumps(key)}: {inner(value)}" for key, value in values.items()) + "\n}"


def spread(values: Iterable[float]) -> dict[str, float] | None:
    """Count, mean and percentiles; None of nothing."""
    found = distribution(values)
    return None if found is None else asdict(found)


def histogram(seconds: Iterable[float]) -> list[tuple[float, int]]:
    """(upper end of the bin in milliseconds, count), ten bins a decade; empty ones are left out."""
    counts: dict[int, int] = {}
    for value in seconds:
        place = math.ceil(BINS_A_DECADE * math.log10(max(1e3 * value, 1e-3)))
        counts[place] = counts.get(place, 0) + 1
    return [(round(10 ** (place / BINS_A_DECADE), 4), counts[place]) for place in sorted(counts)]
