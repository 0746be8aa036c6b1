"""A resident as a process of its own, until it is ready or has failed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from semipd.core.config import ServerConfig, resolve


class Resident:
    """`events`: what it said, "ready" or "failed" last. It is killed at the end."""

    def __init__(self, folder: Path, device: str = "cpu", **config: Any) -> None:
        self.folder = folder
        folder.joinpath("config.json").write_text(resolve(ServerConfig(**config), device).to_json())
        command = [sys.executable, "-m", "semipd.wire.child", "semipd.workers.resident", "--run-dir", str(folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.events: list[dict[str, Any]] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            if self.events[-1]["event"] in ("ready", "failed"):
                break

    def __enter__(self) -> Resident:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
