"""Fills in chat templates, in a process of its own: `python -m semipd.gateway.renderer`, a child of a gateway.

A template is a program that came with a checkpoint. It runs in Jinja's sandbox, which keeps it from the interpreter,
and in a process of its own with a memory limit, which its parent kills when the time is over: no expression, however
built, costs more than its own request. Talks on standard input and output, in frames of a length (4 bytes, big-endian)
and a JSON object: first {"template", "names"}, answered like every later {"messages"} by {"text"} or {"error"}.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, BinaryIO, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from semipd.wire.process import die_with_parent

MEMORY_BYTES = 512 * 1024 * 1024
MAX_TEXT = 4 * 1024 * 1024
"""Most characters that a template may make of the messages."""
MAX_REASON = 200
HEADER = struct.Struct(">I")


class TemplateRefused(TemplateError):
    """The template itself refuses the messages (`raise_exception`)."""


class Generation(Extension):
    """{% generation %}…{% endgeneration %} marks the assistant's turns for training; here it is what it holds."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def environment() -> ImmutableSandboxedEnvironment:
    """Returns the environment that transformers gives a chat template (transformers.utils.chat_template_utils)."""
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])

    def raise_exception(message: object) -> NoReturn:
        raise TemplateRefused(str(message))

    def tojson(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    jinja.filters["tojson"] = tojson
    jinja.globals["raise_exception"] = raise_exception
    jinja.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return jinja


def compiled(source: str, names: Mapping[str, str]) -> Callable[[list[dict[str, str]]], str]:
    """Compiles a template to a function of the messages. Raises TemplateError if the source is no template."""
    template = environment().from_string(source)

    def render(messages: list[dict[str, str]]) -> str:
        parts: list[str] = []
        length = 0
        for part in template.generate(
            **names, messages=messages, tools=None, documents=None, add_generation_prompt=True
        ):
            length += len(part)
            if length > MAX_TEXT:
                raise TemplateRefused(f"the text is longer than {MAX_TEXT} characters")
            parts.append(part)
        return "".join(parts)

    return render


def reason(error: BaseException, messages: list[dict[str, str]]) -> str:
    """Says why a template failed, without what the messages say."""
    if isinstance(error, MemoryError):
        return "the template takes too much memory"
    if isinstance(error, TemplateRefused):
        text = str(error)[:MAX_REASON]
        if not any(m["content"] and (m["content"] in text or text in m["content"]) for m in messages):
            return f"the template refuses them: {text}"
    return f"the template fails on them ({type(error).__name__})"


def read_frame(stream: BinaryIO) -> Any:
    """Reads the next frame; None: there is none any more."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    return json.loads(stream.read(HEADER.unpack(header)[0]))


def write_frame(stream: BinaryIO, value: Mapping[str, str]) -> None:
    body = json.dumps(value).encode()
    stream.write(HEADER.pack(len(body)) + body)
    stream.flush()


def main() -> int:
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    first = read_frame(asked)
    if first is None:
        return 0
    try:
        render = compiled(first["template"], first["names"])
    except (TemplateError, MemoryError, RecursionError) as error:
        write_frame(answers, {"error": f"{type(error).__name__}: {str(error)[:MAX_REASON]}"})
        return 1
    write_frame(answers, {"text": ""})
    while (frame := read_frame(asked)) is not None:
        messages = frame["messages"]
        try:
            answer = {"text": render(messages)}
        except Exception as error:  # whatever a template can think of
            answer = {"error": reason(error, messages)}
        write_frame(answers, answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
