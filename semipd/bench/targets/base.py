"""The interface of a target, which both protocols implement, and the names of targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from random import Random
from typing import Self
from urllib.parse import urlsplit

from semipd.bench.errors import InputError, RunFailed, Unreachable
from semipd.bench.scoring.records import Outcome
from semipd.bench.scoring.target_info import TargetInfo
from semipd.bench.scoring.timeline import LoadSample

DEFAULT_VOCAB = 32_000
"""Below the vocabulary of every current model."""

CONNECT_S = 10.0
"""Seconds to wait for the target to answer at all."""


@dataclass(frozen=True, slots=True)
class Address:
    """grpc://HOST:PORT or openai+http://HOST:PORT/v1 in its parts."""

    protocol: str
    """grpc or openai."""
    host: str
    port: int
    url: str
    """URL of the HTTP base path, without a slash at its end; empty for gRPC."""

    @property
    def hostport(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """One request, ready to be written down in the target's protocol."""

    prompt: tuple[int, ...]
    output_len: int
    ttft_slo_s: float
    tpot_slo_s: float


class ResponseStream:
    """The answer to one request while it runs: the target appends, the load process reads it at the end.

    Times are of time.monotonic(), as they were when the message was in hand.
    """

    __slots__ = ("counts", "queue_s", "reason", "refused", "times", "total")

    def __init__(self) -> None:
        self.times: list[float] = []
        """Time of each message with tokens."""
        self.counts: list[int] = []
        self.total: int | None = None
        """Number of tokens that the target says it generated, where it tells at the end."""
        self.queue_s: float | None = None
        self.refused = False
        self.reason = ""
        """Set where the target answered with an error."""

    def tokens(self) -> int:
        return sum(self.counts) if self.total is None else self.total

    def outcome(self, output_len: int) -> tuple[Outcome, str]:
        if self.refused:
            return Outcome.REFUSED, self.reason
        if self.reason:
            return Outcome.FAILED, self.reason
        if self.tokens() != output_len:
            return Outcome.FAILED, "not as many tokens as were asked for"
        if not self.times:
            return Outcome.FAILED, "no message with tokens"
        return Outcome.DONE, ""


PROBE = PromptRequest((1, 2, 3, 4), 2, 60.0, 60.0)
"""Sent once before a run: a target that can't do it would fail a whole run."""


def check_probe(target: str, stream: ResponseStream) -> None:
    """Raises RunFailed where the probe's answer is not right."""
    outcome, reason = stream.outcome(PROBE.output_len)
    if reason:
        raise RunFailed(
            f"{target}: a request of {len(PROBE.prompt)} + {PROBE.output_len} tokens was {outcome.value}: {reason}"
        )


class Target(ABC):
    """A connection to the target, in one process. `async with` opens and closes it."""

    async def __aenter__(self) -> Self:
        return self

    @abstractmethod
    async def __aexit__(self, *_: object) -> None: ...

    @abstractmethod
    async def describe(self) -> TargetInfo:
        """Raises Unreachable where nobody answers, InputError where the model is not there, RunFailed otherwise."""

    @abstractmethod
    async def connect(self) -> None:
        """Opens what can be opened before the first request. Raises Unreachable."""

    @abstractmethod
    def prepare(self, asked: PromptRequest) -> bytes:
        """The request as it goes over the wire, so that sending costs nothing at its time."""

    @abstractmethod
    async def send(self, prepared: bytes, stream: ResponseStream) -> None:
        """Streams one answer into `stream`. What the target does wrong ends in stream.reason, not in an exception."""

    @abstractmethod
    async def load(self) -> LoadSample | None:
        """Returns how busy the target is now (at_s 0); None where it does not tell."""


def parse_target(text: str) -> Address:
    """Raises InputError where it is neither of the two forms."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"{text}: {error}") from error
    forms = "grpc://HOST:PORT or openai+http://HOST:PORT/v1"
    if parts.scheme not in ("grpc", "openai+http", "openai+https"):
        raise InputError(f"{text}: not a target; it must be {forms}")
    if not host or (parts.scheme == "grpc" and port is None) or parts.username or parts.query or parts.fragment:
        raise InputError(f"{text}: not a target; it must be {forms}")
    if parts.scheme == "grpc":
        assert port is not None
        if parts.path not in ("", "/"):
            raise InputError(f"{text}: a gRPC target has no path; it must be {forms}")
        return Address("grpc", host, port, "")
    secure = parts.scheme == "openai+https"
    named = Address("openai", host, port or (443 if secure else 80), "")
    base = parts.path.rstrip("/")
    return Address("openai", host, named.port, f"http{'s' if secure else ''}://{named.hostport}{base}")


def draw_prompt(seed: int, index: int, length: int, vocab_size: int) -> tuple[int, ...]:
    """Random token ids: the same for the seed and the index of the request, whichever process sends it."""
    random = Random(f"semipd bench prompt {seed} {index}")
    return tuple(random.choices(range(vocab_size), k=length))


def unreachable(text: str, cause: str) -> Unreachable:
    return Unreachable(f"{text}: nobody answers there ({cause})")
