"""The checkpoint's own template makes the prompt, and can harm nobody but its own request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from semipd.core.errors import CheckpointError, InvalidRequest
from semipd.gateway.chat import ChatRenderer, ChatTemplate
from semipd.v1 import generation_pb2 as pb
from support.gateway_bench import GatewayBench, failure_of

HELLO = [{"role": "user", "content": "hello"}]
LLAMA3 = """{%- if not date_string is defined %}{%- set date_string = strftime_now("%Y") %}{%- endif -%}
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- if loop.index > 8 %}{% break %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""


@asynccontextmanager
async def renderer(source: str, **names: str) -> AsyncIterator[ChatRenderer]:
    opened = ChatRenderer(ChatTemplate(source, names))
    try:
        await opened.start()
        yield opened
    finally:
        await opened.close()


async def test_a_template_renders_the_messages() -> None:
    async with renderer(LLAMA3, bos_token="<|begin|>") as chat:
        assert await chat.render(HELLO) == (
            "<|begin|><|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        )


async def test_templates_have_what_transformers_gives_them() -> None:
    source = (
        "{% generation %}{{ messages | tojson }}{% endgeneration %}{{ tools is none }}{{ documents is none }}\n"
        "  {% if true %}\n{{ add_generation_prompt }}{{ strftime_now('%d') | length }}{% endif %}"
    )
    async with renderer(source) as chat:
        messages = [{"role": "user", "content": "<ü>"}]
        assert await chat.render(messages) == json.dumps(messages, ensure_ascii=False) + "TrueTrue\nTrue2"


async def test_a_templates_own_refusal_reaches_the_client() -> None:
    async with renderer("{{ raise_exception('roles must alternate') }}") as chat:
        with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
            await chat.render(HELLO)
        assert caught.value.violations[0].field == "chat.messages"


@pytest.mark.parametrize("source", ["{{ raise_exception(messages[0].content) }}", "{{ messages[0].content / 2 }}"])
async def test_an_error_does_not_repeat_the_messages(source: str) -> None:
    async with renderer(source) as chat:
        with pytest.raises(InvalidRequest) as caught:
            await chat.render([{"role": "user", "content": "my secret"}])
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10**10 }}",
        "{{ '%010000000000d' % 1 }}",
        "{{ 'x' | center(10**10) }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{% for i in range(9000) %}{{ 'x' * 1000 }}{% endfor %}",
        "{{ range(10**9) | list }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ],
)
async def test_a_malicious_template_fails_its_own_request(source: str) -> None:
    async with renderer("{% if messages | length > 1 %}" + source + "{% else %}fine{% endif %}") as chat:
        with pytest.raises(InvalidRequest):
            await chat.render(HELLO * 2)
        assert await chat.render(HELLO) == "fine"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ (messages | length) ** (9 ** 9) }}",
    ],
)
async def test_a_template_that_does_not_end_is_ended_while_the_loop_goes_on(source: str) -> None:
    async with renderer("{% if messages | length > 1 %}" + source + "{% endif %}fine") as chat:
        rendering = asyncio.ensure_future(chat.render(HELLO * 2))
        turns = 0
        while not rendering.done():
            await asyncio.sleep(0.01)
            turns += 1
        assert turns > 10
        with pytest.raises(InvalidRequest):
            await rendering
        assert await chat.render(HELLO) == "fine"


async def test_a_caller_that_leaves_does_not_spoil_the_next_answer() -> None:
    async with renderer("{% for i in range(99999) %}{% endfor %}{{ messages | length }}") as chat:
        leaving = asyncio.ensure_future(chat.render(HELLO))
        await asyncio.sleep(0)
        leaving.cancel()
        assert await chat.render(HELLO * 3) == "3"


async def test_a_template_that_is_none_is_refused_at_the_start() -> None:
    with pytest.raises(CheckpointError, match="TemplateSyntaxError"):
        async with renderer("{% for %}"):
            pass


@pytest.mark.parametrize(
    ("value", "source"),
    [
        ("one", "one"),
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        (None, None),
    ],
)
def test_a_template_is_a_string_or_one_of_several(tmp_path: Path, value: Any, source: str | None) -> None:
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": value, "bos_token": {"content": "<s>"}})
    )
    found = ChatTemplate.of_checkpoint(tmp_path)
    assert (found.source if found else None) == source
    assert found is None or found.names == {"bos_token": "<s>"}


def test_a_template_in_its_own_file_comes_first(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
    (tmp_path / "chat_template.jinja").write_text("new")
    found = ChatTemplate.of_checkpoint(tmp_path)
    assert found is not None
    assert found.source == "new"


async def test_chat_messages_become_the_prompt_without_a_second_bos(bench: GatewayBench, tokenizer: Tokenizer) -> None:
    messages = [pb.ChatMessage(role="user", content=" hello ")]
    call = bench.stream(chat=pb.Chat(messages=messages))
    submit = await bench.coordinator.expect("submit")
    expected = tokenizer.encode("<s>[user] hello\n[assistant]", add_special_tokens=False).ids
    assert list(submit.prompt) == expected
    call.cancel()


async def test_a_role_that_the_template_refuses_is_the_clients_mistake(bench: GatewayBench) -> None:
    details = await failure_of(bench.generate(chat=pb.Chat(messages=[pb.ChatMessage(role="wizard", content="x")])))
    assert "wizard" in details.violations["chat.messages"]
