"""One answer to one prompt."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from semipd.cli.reading import TokenTimings, read_aloud, summary_line
from semipd.cli.terminal import Voice, remark
from semipd_client import Client, Message, Options, Prompt, Stream


def answer(
    client: Client,
    text: str,
    *,
    system: str | None = None,
    chat: bool | None = None,
    as_json: bool = False,
    stats: bool = True,
    options: Options,
) -> None:
    """`chat` None: a chat where the model has a template. Raises SemipdClientError."""
    if chat is None:
        chat = client.model(options.get("model")).capabilities.chat
    prompt = as_chat(text, system) if chat else text
    if as_json:
        print(json.dumps(report(*read_aloud(lambda: client.stream(prompt, **options))), ensure_ascii=False))
        return
    stream, pace = read_aloud(lambda: client.stream(prompt, **options), Voice(sys.stdout))
    if stats:
        remark(summary_line(stream, pace))


def as_chat(text: str, system: str | None) -> Prompt:
    turns = [] if system is None else [Message("system", system)]
    return [*turns, Message("user", text)]


def report(stream: Stream, pace: TokenTimings) -> dict[str, object]:
    """Returns what --json prints. Times in seconds: `client` as measured here, `server` as the server says."""
    return {
        "request_id": stream.request_id,
        "model": stream.model,
        "text": stream.text,
        "token_ids": stream.token_ids,
        "finish": None if stream.finish is None else asdict(stream.finish),
        "usage": None if stream.usage is None else asdict(stream.usage),
        "client": asdict(pace),
        "server": None if stream.timings is None else asdict(stream.timings),
    }
