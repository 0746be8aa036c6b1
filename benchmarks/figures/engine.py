"""The engine alone, in a process of its own: a decode step and a prefill on the whole GPU, no server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from figures import engine_process
from figures.bench import Bench, NeedsGpu
from figures.section_results import Page
from semipd.bench.errors import RunFailed


def engine(bench: Bench, page: Page) -> None:
    if not bench.gpu:
        raise NeedsGpu("needs a GPU")
    bench.stop()  # its pool leaves no room for another
    scale = bench.scale
    asked = {"model": scale.model, "decode_steps": scale.decode_steps, "prefills": scale.prefills}
    page.result |= {"decode": [], "prefill": []}
    process = subprocess.Popen(
        [sys.executable, "-P", engine_process.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(bench.out / "engine.log").open("wb"),
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    dog = threading.Timer(scale.limits_s["engine"], process.kill)
    dog.start()
    try:
        process.stdin.write(json.dumps(asked))
        process.stdin.close()
        for line in process.stdout:
            if line.startswith("{"):
                heard(json.loads(line), page)
                page.save()
    finally:
        dog.cancel()
        process.kill()
        code = process.wait()
    if "done" not in page.result:
        words = Path(bench.out / "engine.log").read_text(errors="replace")[-1500:]
        raise RunFailed(f"the engine's process ended with code {code}: {' | '.join(words.splitlines()[-6:])}")


def heard(found: dict[str, Any], page: Page) -> None:
    if "context" in found:
        page.result["decode"].append(found)
        if (found["requests"], found["context"]) == (64, 1024) and "decode_ms" in found:
            page.figures["decode_64x1024_ms"] = found["decode_ms"]
    elif "tokens" in found:
        page.result["prefill"].append(found)
        if found["tokens"] == 2048 and "tokens_per_s" in found:
            page.figures["prefill_2048_tok_s"] = found["tokens_per_s"]
    else:
        page.result |= found
    print(f"    {json.dumps(found)}", flush=True)
