"""A real gateway over real gRPC and ZeroMQ, a tiny checkpoint, and a coordinator that does what the test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
import zmq
import zmq.asyncio
from google.rpc import error_details_pb2, status_pb2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from semipd.core.config import ServerConfig
from semipd.gateway.server import Gateway
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.internal.v1 import sequence_pb2 as seq
from semipd.v1 import generation_pb2 as pb
from semipd.v1 import generation_pb2_grpc
from semipd.wire.sockets import RunDir, bind_router

PATIENCE_S = 90.0


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


class FakeCoordinator:
    """The other end of the wire. `expect` what the gateway says; `say` what it shall hear."""

    def __init__(self, run_dir: RunDir) -> None:
        self._context = zmq.asyncio.Context()
        self._socket = bind_router(self._context, run_dir.gateway_endpoint)
        self._gateway = b""

    async def expect(self, kind: str):
        """The next message; it must be of that kind."""
        async with asyncio.timeout(PATIENCE_S):
            self._gateway, frame = await self._socket.recv_multipart()
        message = gw.FromGateway.FromString(frame)
        assert message.WhichOneof("message") == kind, message
        return getattr(message, kind)

    async def say(self, **message) -> None:
        await self._socket.send_multipart((self._gateway, gw.ToGateway(**message).SerializeToString()))

    async def admit(self) -> gw.Submit:
        """The next request, taken on."""
        submit = await self.expect("submit")
        await self.say(admitted=gw.Admitted(ticket=submit.ticket))
        return submit

    async def deltas(self, *deltas: gw.Delta) -> None:
        await self.say(deltas=gw.Deltas(deltas=deltas))

    async def refuse(self, ticket: int, reason: str, message: str = "no", **more) -> None:
        await self.say(ended=gw.Ended(ticket=ticket, failure=gw.Failure(reason=reason, message=message, **more)))

    def close(self) -> None:
        self._socket.close()
        self._context.term()


TIMINGS = pb.Timings(queue=0.1, prefill=0.2, time_to_first_token=0.3, decode=0.4)


def delta(ticket: int, position: int, tokens: Sequence[int], *, index: int = 0, end: int | None = None, **more):
    """`end` is an EndReason of the wire."""
    message = gw.Delta(ticket=ticket, index=index, position=position, tokens=tokens, **more)
    if end is not None:
        stop = tokens[-1] if end == seq.END_REASON_STOP_TOKEN else None
        message.end.CopyFrom(seq.End(reason=end, stop_token_id=stop))
        message.timings.CopyFrom(TIMINGS)
    return message


@pytest.fixture
def make_delta() -> Callable[..., gw.Delta]:
    return delta


class Details:
    """Reads what a failed RPC tells: its status code and the one ErrorInfo that it must carry."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code()
        self.message = error.details()
        self.trailers = dict(error.trailing_metadata())
        self.status = status_pb2.Status.FromString(self.trailers["grpc-status-details-bin"])
        [self.info] = self._all(error_details_pb2.ErrorInfo)
        assert self.info.domain == "semipd"
        assert self.status.code == self.code.value[0]

    def _all(self, kind):
        found = []
        for detail in self.status.details:
            if detail.Is(kind.DESCRIPTOR):
                found.append(kind())
                detail.Unpack(found[-1])
        return found

    @property
    def violations(self) -> dict[str, str]:
        [bad] = self._all(error_details_pb2.BadRequest)
        return {violation.field: violation.description for violation in bad.field_violations}

    @property
    def retry_ms(self) -> int:
        [retry] = self._all(error_details_pb2.RetryInfo)
        return retry.retry_delay.ToMilliseconds()


async def failure(awaited) -> Details:
    """The RPC fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaited
    return Details(caught.value)


@pytest.fixture
def fails() -> Callable[..., Awaitable[Details]]:
    return failure


class Bench:
    """A gateway with its coordinator and a client's channel."""

    def __init__(self, coordinator: FakeCoordinator, gateway: Gateway, channel: grpc.aio.Channel) -> None:
        self.coordinator = coordinator
        self.gateway = gateway
        self.channel = channel
        self.generation = generation_pb2_grpc.GenerationServiceStub(channel)

    def stream(self, timeout: float | None = PATIENCE_S, metadata=None, **generation):
        request = pb.GenerateStreamRequest(generation=pb.Generation(**generation))
        return self.generation.GenerateStream(request, timeout=timeout, metadata=metadata)

    def generate(self, timeout: float | None = PATIENCE_S, **generation):
        request = pb.GenerateRequest(generation=pb.Generation(**generation))
        return self.generation.Generate(request, timeout=timeout)


@pytest.fixture
def open_bench(checkpoint: Path, tmp_path: Path):
    """Opens a bench on a configuration that differs from the usual one as asked."""

    @asynccontextmanager
    async def opened(options=(), **settings) -> AsyncIterator[Bench]:
        config = replace(ServerConfig(model=str(checkpoint), port=0), **settings)
        run_dir = RunDir(tmp_path)
        coordinator = FakeCoordinator(run_dir)
        try:
            async with (
                Gateway(config, run_dir, "gateway.0") as gateway,
                grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}", options=options) as channel,
            ):
                assert (await coordinator.expect("hello")).port == gateway.port
                yield Bench(coordinator, gateway, channel)
        finally:
            coordinator.close()

    return opened


@pytest_asyncio.fixture(loop_scope="session")
async def bench(open_bench) -> AsyncIterator[Bench]:
    async with open_bench() as opened:
        yield opened
