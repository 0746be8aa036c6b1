"""Watches a GPU's power and clock: many figures look odd until one knows that the GPU is at its power limit."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

EVERY_MS = 250
POWER_LIMIT_REASON = 0x4
"""Bit of nvidia-smi's clocks_event_reasons: the clock is lower, to stay within the power limit."""


@dataclass(frozen=True, slots=True)
class Look:
    at_s: float
    """Seconds since the watch began."""
    sm_mhz: float
    watts: float
    limited: bool


class PowerWatch:
    """Asks nvidia-smi, which asks the driver and opens no device; sees nothing where there is none."""

    def __init__(self) -> None:
        self.looks: list[Look] = []
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._begin_s = 0.0

    def __enter__(self) -> Self:
        program = shutil.which("nvidia-smi")
        self._begin_s = time.monotonic()
        if program is not None:
            fields = "clocks.sm,power.draw,clocks_event_reasons.active"
            device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
            command = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits", f"-lms={EVERY_MS}"]
            self._process = subprocess.Popen([*command, "-i", device], stdout=subprocess.PIPE, text=True)
            self._thread = threading.Thread(target=self._read, daemon=True)
            self._thread.start()
        return self

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = look(time.monotonic() - self._begin_s, line)
            if found is not None:
                self.looks.append(found)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._thread is not None:
            self._thread.join()


def look(at_s: float, line: str) -> Look | None:
    """Parses a line of nvidia-smi; None where it has no figures."""
    try:
        mhz, watts, reasons = line.split(",")
        return Look(at_s, float(mhz), float(watts), bool(int(reasons, 16) & POWER_LIMIT_REASON))
    except ValueError:
        return None


def told(looks: Sequence[Look], since_s: float, until_s: float) -> dict[str, float] | None:
    """Summarises the looks of a time: means, the median clock, the share under the power limit. None: there is no
    look."""
    seen = [one for one in looks if since_s <= one.at_s < until_s]
    if not seen:
        return None
    return {
        "looks": len(seen),
        "watts_mean": round(statistics.mean(one.watts for one in seen), 1),
        "sm_mhz_mean": round(statistics.mean(one.sm_mhz for one in seen), 1),
        "sm_mhz_median": statistics.median(one.sm_mhz for one in seen),
        "power_limited": round(statistics.mean(one.limited for one in seen), 3),
    }
