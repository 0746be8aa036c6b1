"""A real gateway over real gRPC and ZeroMQ, a tiny checkpoint, and a coordinator that does what the test says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from semipd.core.config import ServerConfig
from semipd.gateway.server import Gateway
from semipd.wire.sockets import RunDir
from support.gateway_bench import FakeCoordinator, GatewayBench, OpenBench


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One event loop for all: grpc.aio's completion queue goes on serving the loop of an earlier test otherwise."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


BOS, EOS = 0, 1
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "eos_token_id": EOS,
    "bos_token_id": BOS,
}
TEMPLATE = """{{ bos_token }}{% for m in messages %}{% if m.role not in ["system", "user", "assistant"] %}
{{ raise_exception("Unknown role " ~ m.role) }}
{% endif %}[{{ m.role }}] {{ m.content | trim }}
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""


def byte_level_tokenizer() -> Tokenizer:
    """Every byte is a token, and a few words are; <s> is put before a prompt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello world, hello there"] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return byte_level_tokenizer()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(MODEL))
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture
def open_bench(checkpoint: Path, tmp_path: Path) -> OpenBench:
    """Returns a function that opens a bench on a configuration that differs from the usual one as asked."""

    @asynccontextmanager
    async def opened(options: Sequence[tuple[str, Any]] = (), **settings: Any) -> AsyncIterator[GatewayBench]:
        config = replace(ServerConfig(model=str(checkpoint), port=0), **settings)
        run_dir = RunDir(tmp_path)
        coordinator = FakeCoordinator(run_dir)
        try:
            async with (
                Gateway(config, run_dir, "gateway.0") as gateway,
                grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}", options=options) as channel,
            ):
                assert (await coordinator.expect("hello")).port == gateway.port
                yield GatewayBench(coordinator, gateway, channel)
        finally:
            coordinator.close()

    return opened


@pytest_asyncio.fixture(loop_scope="session")
async def bench(open_bench: OpenBench) -> AsyncIterator[GatewayBench]:
    async with open_bench() as opened:
        yield opened
