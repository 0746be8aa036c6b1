"""A worker process: imports everything, says hello, and waits to be appointed prefill or decode worker.

The imports are where the seconds of a start go; a spare has spent them before it is needed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import structlog

from semipd.core.config import ServerConfig
from semipd.engine.engine import Engine
from semipd.engine.loading import read_model_config
from semipd.internal.v1 import worker_pb2 as wk
from semipd.memory.account import Holder, Role
from semipd.wire.logging import configure_logging
from semipd.wire.process import die_with_parent, started_by
from semipd.wire.sockets import RunDir
from semipd.workers.attach import attach
from semipd.workers.decode import DecodeWorker
from semipd.workers.link import Link
from semipd.workers.prefill import PrefillWorker
from semipd.workers.shares import Shares
from semipd.workers.sizing import model_directory

log = structlog.get_logger()

ROLE = {wk.WORKER_ROLE_PREFILL: Role.PREFILL, wk.WORKER_ROLE_DECODE: Role.DECODE}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--incarnation", type=int, required=True)
    given = parser.parse_args()
    die_with_parent(started_by())
    config = ServerConfig.from_json(RunDir(given.run_dir).config.read_text())
    configure_logging(config, f"worker.{given.incarnation}")
    with Link(given.run_dir, given.incarnation) as link:
        try:
            return work(link, config, given.run_dir, given.incarnation)
        except Exception as error:
            log.exception("worker fails")
            link.send(wk.FromWorker(failed=wk.Failed(error=type(error).__name__)))
            return 1


def work(link: Link, config: ServerConfig, run_dir: Path, incarnation: int) -> int:
    link.send(wk.FromWorker(hello=wk.WorkerHello()))
    appoint = wait_for_appointment(link)
    if appoint is None:
        return 0
    me = Holder(ROLE[appoint.role], incarnation)
    structlog.contextvars.bind_contextvars(process=f"{me.role.name.lower()}.{incarnation}")
    model = read_model_config(model_directory(config))
    shares = Shares(me.role, model)
    shares.compute_on(appoint.cpus)
    with attach(run_dir) as attached:
        engine = Engine(model, attached.weights, attached.pool)
        worker = (PrefillWorker if me.role is Role.PREFILL else DecodeWorker)(
            link, engine, attached.account, me, shares
        )
        link.send(wk.FromWorker(ready=wk.Ready()))
        worker.run()
    return 0


def wait_for_appointment(link: Link) -> wk.Appoint | None:
    """None: told to end instead."""
    while True:
        message = link.receive(wait_s=60.0)
        if message is None:
            continue
        if message.HasField("shutdown"):
            return None
        if message.HasField("appoint"):
            return message.appoint


if __name__ == "__main__":
    sys.exit(main())
