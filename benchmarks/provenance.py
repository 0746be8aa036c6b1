"""Saves figures in results/, each with its origin."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from semipd.bench.provenance import provenance

RESULTS = Path(__file__).parent / "results"


def save(name: str, figures: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Writes NAME.json, in benchmarks/results unless told."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"provenance": asdict(provenance()), **figures}, indent=2) + "\n")
    return path
