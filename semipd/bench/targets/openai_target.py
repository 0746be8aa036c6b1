"""Any server that speaks OpenAI's completions protocol (vLLM, SGLang and others), streaming over HTTP.

How tokens are counted: the request asks for usage with every chunk (`continuous_usage_stats`), and where the server
sends it, a chunk has as many tokens as completion_tokens grew by. Where usage comes only with the last chunk, or never,
a chunk with a choice counts as one token, and the total is usage's if there is any. The report says which it was.
"""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from typing import Any, Self

import aiohttp

from semipd.bench.errors import InputError, RunFailed, Unreachable
from semipd.bench.scoring.target_info import TargetInfo
from semipd.bench.scoring.timeline import LoadSample
from semipd.bench.settings import RunSettings, authorization
from semipd.bench.targets.base import (
    CONNECT_S,
    DEFAULT_VOCAB,
    PROBE,
    Address,
    PromptRequest,
    ResponseStream,
    Target,
    check_probe,
    unreachable,
)

REFUSALS = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)

READ_BUFFER = 1 << 20

EVERY_CHUNK = "usage in every chunk"
AT_THE_END = "one token a chunk, the total from usage at the end"
CHUNKS = "one token a chunk"


class OpenAiTarget(Target):
    def __init__(self, settings: RunSettings, address: Address) -> None:
        if not settings.model:
            raise InputError(f"{settings.target}: an OpenAI-compatible target needs --model")
        self._settings = settings
        self._url = address.url
        self._completions = f"{address.url}/completions"
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            # no limit: a request that waits in the client for a connection would not have been sent
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            headers={"Content-Type": "application/json", "Accept": "text/event-stream"} | authorization("openai"),
            read_bufsize=READ_BUFFER,
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def _http(self) -> aiohttp.ClientSession:
        assert self._session is not None, "the target is open only inside `async with`"
        return self._session

    async def describe(self) -> TargetInfo:
        """Asks for the models, and for two tokens: what they come with shows how tokens can be counted."""
        model = await self._model()
        probe = ResponseStream()
        vocab_size = self._settings.vocab_size or DEFAULT_VOCAB
        chunks = EventStreamParser(probe)
        await self._send(self.prepare(PROBE), probe, chunks)
        check_probe(self._settings.target, probe)
        limit = model.get("max_model_len")
        told = {"model": model.get("id"), "root": model.get("root"), "owned_by": model.get("owned_by")}
        return TargetInfo(
            protocol="openai",
            model=str(model.get("id")),
            vocab_size=vocab_size,
            max_context=limit if isinstance(limit, int) and limit > 0 else None,
            counting=chunks.counting,
            server={name: str(value) for name, value in (told | await self._version()).items() if value},
        )

    async def _model(self) -> dict[str, Any]:
        status, body = await self._get(f"{self._url}/models")
        if status != HTTPStatus.OK:
            raise RunFailed(f"{self._settings.target}: GET {self._url}/models answered with HTTP {status}")
        listed = body.get("data") if isinstance(body, dict) else None
        if not isinstance(listed, list) or not all(isinstance(m, dict) for m in listed):
            raise RunFailed(f"{self._settings.target}: GET {self._url}/models is not a list of models")
        for model in listed:
            if model.get("id") == self._settings.model:
                return dict(model)
        names = ", ".join(str(m.get("id")) for m in listed[:10])
        raise InputError(f"{self._settings.target}: it has no model {self._settings.model}, but {names or 'none'}")

    async def _version(self) -> dict[str, Any]:
        """vLLM and others tell it one level above the API; who doesn't is none the worse."""
        try:
            status, body = await self._get(f"{self._url.rpartition('/v1')[0]}/version")
        except Unreachable:
            return {}
        return body if status == HTTPStatus.OK and isinstance(body, dict) else {}

    async def _get(self, url: str) -> tuple[int, Any]:
        try:
            async with self._http.get(url, timeout=aiohttp.ClientTimeout(total=CONNECT_S)) as answer:
                text = await answer.text(errors="replace")
        except aiohttp.ClientConnectorError as error:
            raise unreachable(self._settings.target, error.os_error.strerror or str(error.os_error)) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise unreachable(self._settings.target, str(error) or type(error).__name__) from error
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, None

    async def connect(self) -> None:
        """HTTP/1.1 needs a connection for each request that runs: they are opened as they are needed."""
        await self._get(f"{self._url}/models")

    def prepare(self, asked: PromptRequest) -> bytes:
        body = {
            "model": self._settings.model,
            "prompt": asked.prompt,
            "max_tokens": asked.output_len,
            "min_tokens": asked.output_len,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        return json.dumps(body, separators=(",", ":")).encode()

    async def send(self, prepared: bytes, stream: ResponseStream) -> None:
        await self._send(prepared, stream, EventStreamParser(stream))

    async def _send(self, prepared: bytes, stream: ResponseStream, chunks: EventStreamParser) -> None:
        try:
            async with self._http.post(self._completions, data=prepared) as answer:
                if answer.status != HTTPStatus.OK:
                    stream.refused = answer.status in REFUSALS
                    stream.reason = f"HTTP {answer.status}: {told_error(await answer.text(errors='replace'))}"
                    return
                over = False
                async for piece in answer.content.iter_any():  # to its end, so that the connection is used again
                    over = over or chunks.take(piece, time.monotonic())
            if not over:
                stream.reason = "the stream ended without [DONE]"
        except (aiohttp.ClientError, TimeoutError) as error:
            stream.reason = f"the connection broke: {type(error).__name__}"

    async def load(self) -> LoadSample | None:
        return None


class EventStreamParser:
    """Server-sent events, put together from what comes off the wire, into a ResponseStream."""

    def __init__(self, stream: ResponseStream) -> None:
        self._stream = stream
        self._rest = b""
        self._counted = 0
        self.counting = CHUNKS

    def take(self, piece: bytes, at: float) -> bool:
        """Takes a piece of the answer and returns whether that is over. All events of a piece came at the same time."""
        lines = (self._rest + piece if self._rest else piece).split(b"\n")
        self._rest = lines.pop()
        return any(self._event(line[5:].strip(), at) for line in lines if line.startswith(b"data:"))

    def _event(self, data: bytes, at: float) -> bool:
        if data == b"[DONE]":
            return True
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            self._stream.reason = "a chunk that is not JSON"
            return True
        if "error" in event:
            self._stream.reason = f"error in the stream: {told_error(data.decode(errors='replace'))}"
            return True
        usage = event.get("usage")
        total = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if event.get("choices"):
            self._tokens(total, at)
        elif isinstance(total, int):
            self._stream.total = total
            if self.counting is CHUNKS:
                self.counting = AT_THE_END
        return False

    def _tokens(self, total: object, at: float) -> None:
        """A chunk with a choice; `total` where it tells how many tokens there are so far."""
        count = 1
        if isinstance(total, int):
            self.counting = EVERY_CHUNK
            count = total - self._counted
            self._counted = total
        if count > 0:
            self._stream.times.append(at)
            self._stream.counts.append(count)


def told_error(body: str) -> str:
    """The message of an error's body, cut short."""
    try:
        said = json.loads(body)
    except ValueError:
        said = body
    if isinstance(said, dict):
        inner = said.get("error", said)
        said = inner.get("message", inner) if isinstance(inner, dict) else inner
    return " ".join(str(said).split())[:160]
