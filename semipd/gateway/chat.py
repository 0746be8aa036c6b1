"""Turns chat messages into a prompt, by the checkpoint's own template, in a process that can be ended."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from semipd.core.errors import CheckpointError, InvalidRequest
from semipd.gateway.renderer import HEADER
from semipd.gateway.served_model import read_json

log = structlog.get_logger()

RENDER_S = 0.5
"""Seconds that a template may take for one prompt."""
START_S = 10.0
"""Seconds for starting a Python process and compiling the template; it takes as long only on a busy machine."""
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template's source, and the special tokens that it may name."""

    source: str
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_checkpoint(cls, directory: Path) -> ChatTemplate | None:
        """Reads chat_template.jinja or tokenizer_config.json. None: the checkpoint has no template."""
        path = directory / "tokenizer_config.json"
        settings = read_json(path) if path.is_file() else {}
        names = {name: text for name in SPECIAL_NAMES if (text := _token(settings.get(name))) is not None}
        separate = directory / "chat_template.jinja"
        source = separate.read_text(encoding="utf-8") if separate.is_file() else _source(settings.get("chat_template"))
        return None if source is None else cls(source, names)


def _token(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _source(value: Any) -> str | None:
    """Returns the template's text. The field is a string, or a list of named ones of which "default" is for chat."""
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}.get("default")
    if value is not None and not isinstance(value, str):
        raise CheckpointError("tokenizer_config.json: chat_template must be a string or a list of named templates")
    return value


class ChatRenderer:
    """Owns the process that renders. `start` it in the event loop that uses it; `close` ends it."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._process: Process | None = None
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Starts the process. Raises CheckpointError if the template cannot be compiled."""
        async with self._turn:
            await self._started()

    async def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Returns the prompt. Raises InvalidRequest if the template refuses the messages, fails or is too slow."""
        async with self._turn:
            process = await self._started()
            answered = False
            try:
                answer = await asyncio.wait_for(_exchange(process, {"messages": list(messages)}), RENDER_S)
                answered = True
            except (TimeoutError, asyncio.IncompleteReadError, OSError) as error:
                slow = isinstance(error, TimeoutError)
                log.warning("chat template ended by force", why="time" if slow else "its process died")
                why = f"the chat template takes longer than {RENDER_S} s on them" if slow else "the chat template fails"
                raise InvalidRequest.of("chat.messages", why) from None
            finally:
                # Also where the caller has left in the middle: what the process says next is nobody's answer.
                if not answered:
                    self._kill()
        if "error" in answer:
            raise InvalidRequest.of("chat.messages", answer["error"])
        return answer["text"]

    async def _started(self) -> Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "semipd.gateway.renderer", stdin=PIPE, stdout=PIPE
        )
        self._process = process
        first = {"template": self._template.source, "names": dict(self._template.names)}
        try:
            answer = await asyncio.wait_for(_exchange(process, first), START_S)
        except (TimeoutError, asyncio.IncompleteReadError, OSError) as error:
            self._kill()
            raise CheckpointError(f"the chat template can't be compiled ({type(error).__name__})") from error
        except BaseException:
            self._kill()
            raise
        if "error" in answer:
            self._kill()
            raise CheckpointError(f"the chat template can't be compiled: {answer['error']}")
        return process

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        self._process = None

    async def close(self) -> None:
        process = self._process
        self._kill()
        if process is not None:
            await process.wait()


async def _exchange(process: Process, question: Mapping[str, Any]) -> dict[str, str]:
    assert process.stdin is not None
    assert process.stdout is not None
    body = json.dumps(question).encode()
    process.stdin.write(HEADER.pack(len(body)) + body)
    await process.stdin.drain()
    (length,) = HEADER.unpack(await process.stdout.readexactly(HEADER.size))
    answer: dict[str, str] = json.loads(await process.stdout.readexactly(length))
    return answer
