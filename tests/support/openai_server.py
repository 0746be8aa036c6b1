"""A small OpenAI-compatible server over real HTTP, whose streams a test scripts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

MODEL = "tiny"

Script = Callable[[dict[str, Any]], list[bytes | dict[str, Any]]]


def chunk(text: str = "x", completion_tokens: int | None = None) -> dict[str, Any]:
    """Makes an event with a choice, and with usage where a number of tokens is given."""
    usage = {} if completion_tokens is None else {"usage": {"prompt_tokens": 4, "completion_tokens": completion_tokens}}
    return {"object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": None}], **usage}


def last_usage(completion_tokens: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": completion_tokens}}


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def every_token_counted(body: dict[str, Any]) -> list[bytes | dict[str, Any]]:
    return [*(chunk("x", i + 1) for i in range(body["max_tokens"])), last_usage(body["max_tokens"]), DONE]


class OpenAiServer:
    """`bodies` are the requests that came; `script` says what each is answered with, written piece by piece."""

    def __init__(self, script: Script = every_token_counted, status: int = 200) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.script = script
        self.status = status
        self.target = ""

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": MODEL, "object": "model", "max_model_len": 4096}]})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.authorizations.append(request.headers.get("Authorization"))
        if self.status != 200:
            return web.json_response({"error": {"message": "no room", "code": self.status}}, status=self.status)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for piece in self.script(body):
            await answer.write(event(piece) if isinstance(piece, dict) else piece)
        await answer.write_eof()
        return answer

    @asynccontextmanager
    async def running(self) -> AsyncIterator[OpenAiServer]:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/completions", self.completions)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.target = f"openai+http://127.0.0.1:{runner.addresses[0][1]}/v1"
            yield self
        finally:
            await runner.cleanup()
