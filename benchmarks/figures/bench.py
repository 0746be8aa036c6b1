"""The bench of every section: the scale, the folder, and one server that is used again while its options fit."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import grpc

from figures.load import warm_up
from figures.server_process import Admin, Served
from figures.sizes import Scale, model_directory
from semipd.bench.errors import RunFailed
from semipd.bench.gpu import GpuMeter
from semipd.core.config import ServerConfig

TRIES = 2
"""Attempts to start a server with the same options: time on the machine is short."""
IDLE_S = 5.0
"""Seconds in which the remains of a former section end."""


class SectionTimeout(Exception):
    pass


class NeedsGpu(Exception):
    """The section can't be measured on this machine."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A server that a section asks for: options of the server by field, a policy and its options."""

    server: dict[str, str]
    policy: str = "fcfs"
    policy_options: dict[str, str] = field(default_factory=dict)

    def over(self, text: str) -> Wanted:
        """Returns a copy with `name=value,...` over it: fields of ServerConfig are the server's, `policy` names the
        policy, all else is the policy's. Another policy begins without options. Raises ValueError."""
        server, policy, options = dict(self.server), self.policy, dict(self.policy_options)
        for part in filter(None, text.split(",")):
            name, equals, value = part.partition("=")
            if not equals:
                raise ValueError(f"{part!r} is not NAME=VALUE")
            if name == "policy":
                policy, options = value, {} if value != policy else options
            elif name in ServerConfig.__dataclass_fields__:
                server[name] = value
            else:
                options[name] = value
        return Wanted(server, policy, options)


class Bench:
    """`with` it: the server that is running then is stopped at the end."""

    def __init__(self, scale: Scale, out: Path, serve: Mapping[str, str], seed: int, clients: int | None) -> None:
        """`serve`: what `Wanted.over` takes, by section; "all" counts for each."""
        self.scale = scale
        self.out = out
        self.gpu = scale.name == "full" and memory_used() is not None
        self.seed = seed
        self.clients = clients if clients is not None else scale.clients
        self.model = model_directory(scale, out)
        self._serve = serve
        self._stack = ExitStack()
        self._served: Served | None = None
        self._admin: Admin | None = None
        self._options: dict[str, str] = {}
        self._policy: tuple[str, dict[str, str]] = ("", {})
        self._started = 0
        self._failed: list[dict[str, str]] = []
        self.memory_before: int | None = None
        """Bytes of the GPU that were in use before any server of ours."""

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wanted(self, section: str, **server: str) -> Wanted:
        base = Wanted({**self.scale.server, **server})
        return base.over(self._serve.get("all", "")).over(self._serve.get(section, ""))

    def server(self, section: str, **options: str) -> tuple[Served, Admin]:
        """Ready, warm and idle, under the section's policy. `options`: of the server, for this section."""
        wanted = self.wanted(section, **options)
        if not self._fits(wanted):
            self.stop()
            self._start(wanted)
        assert self._served is not None
        assert self._admin is not None
        if self._policy != (wanted.policy, wanted.policy_options):
            self._admin.set_policy(wanted.policy, wanted.policy_options)
            self._policy = (wanted.policy, wanted.policy_options)
        return self._served, self._admin

    def _fits(self, wanted: Wanted) -> bool:
        if self._served is None or self._admin is None or not self._served.alive or self._options != wanted.server:
            return False
        try:
            return self._admin.idle(IDLE_S)
        except grpc.RpcError:
            return False

    def _start(self, wanted: Wanted) -> None:
        if self.memory_before is None:
            self.memory_before = memory_used()
        self._started += 1
        if self._failed.count(wanted.server) >= TRIES:
            raise RunFailed("a server with these options did not start before; see its log")
        log = self.out / f"server_{self._started}.log"
        self._failed.append(wanted.server)
        served = self._stack.enter_context(Served(self.model, wanted.server, log, self.scale.start_s))
        self._failed.remove(wanted.server)
        self._admin = self._stack.enter_context(Admin(served.address))
        warm_up(served.target, self.scale, self.clients)
        self._served, self._options, self._policy = served, wanted.server, ("", {})

    def stop(self) -> None:
        self._stack.close()
        self._served = self._admin = None


def memory_used() -> int | None:
    """Bytes in use on the first GPU; None without one."""
    with GpuMeter() as meter:
        readings = meter.read()
        return readings[0].memory_used if readings else None


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raises SectionTimeout in the main thread when the time is over."""

    def over(_signal: int, _frame: FrameType | None) -> None:
        raise SectionTimeout(f"not within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def wait_for(seconds: float, look: object, every_s: float = 0.05) -> bool:
    """Waits until the callable answers true, and returns whether it did in time."""
    assert callable(look)
    until = time.monotonic() + seconds
    while not look():
        if time.monotonic() > until:
            return False
        time.sleep(every_s)
    return True
