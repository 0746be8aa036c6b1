"""Runs a gateway, a child of the coordinator: `python -m semipd.wire.child semipd.gateway --run-dir DIR --name NAME`.

It says on standard output, as JSON, that it listens and where, or why it can't. SIGTERM lets the streams finish; the
end of the coordinator ends it at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import structlog
import uvloop

from semipd.core.config import ServerConfig
from semipd.core.errors import StartError
from semipd.gateway.server import Gateway
from semipd.wire.logging import configure_logging
from semipd.wire.process import freeze_start_up_objects, started_by
from semipd.wire.sockets import RunDir

log = structlog.get_logger()

PARENT_S = 0.5
"""Seconds between two looks at the parent, for systems whose kernel doesn't tell of its death."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="semipd.gateway", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--name", required=True)
    given = parser.parse_args()
    parent = started_by() or os.getppid()
    # Threads of the tokenizer's own would compete with the workers; ours are enough.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        config = ServerConfig.from_json(RunDir(given.run_dir).config.read_text())
        configure_logging(config, given.name)
        return uvloop.run(serve(config, RunDir(given.run_dir), given.name, parent))
    except StartError as error:
        announce(event="failed", error=str(error))
        return 1


async def serve(config: ServerConfig, run_dir: RunDir, name: str, parent: int) -> int:
    """Runs the gateway until SIGTERM, and returns 0. The parent's death ends the process (1). Raises StartError."""
    terminated: asyncio.Queue[None] = asyncio.Queue()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.put_nowait, None)
    async with Gateway(config, run_dir, name) as gateway:
        freeze_start_up_objects()
        announce(event="listening", port=gateway.port)
        log.info("listening", host=config.host, port=gateway.port)
        if not await _wait_for_sigterm(terminated, parent):
            os._exit(1)
        log.info("stopping")
        stopping = asyncio.ensure_future(gateway.stop(config.drain_timeout_s))
        again = asyncio.ensure_future(terminated.get())
        await asyncio.wait((stopping, again), return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        if not stopping.done():
            await gateway.stop(0.0)
        await stopping
    return 0


async def _wait_for_sigterm(terminated: asyncio.Queue[None], parent: int) -> bool:
    """Waits for SIGTERM and returns True; False: the parent is gone."""
    while os.getppid() == parent:
        try:
            async with asyncio.timeout(PARENT_S):
                await terminated.get()
        except TimeoutError:
            continue
        return True
    return False


def announce(**event: Any) -> None:
    """Writes one event for the coordinator."""
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    sys.exit(main())
