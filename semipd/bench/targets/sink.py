"""A trivial server: answers every prompt with tokens at a fixed pace, and computes nothing.

What a load generator measures against it is the load generator, and gRPC. `Sink` runs it in processes of its own that
share one port; benchmarks and tests use it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any, Self

import grpc
import uvloop

from semipd.v1 import admin_pb2, admin_pb2_grpc, generation_pb2, generation_pb2_grpc, model_pb2, model_pb2_grpc

VOCAB = 1000
CONTEXT = 16_384
PAGE = 16


class SinkGeneration(generation_pb2_grpc.GenerationServiceServicer):
    """The first token after `first_s`, each other `pace_s` after the one before it, kept to however late one was."""

    def __init__(self, first_s: float, pace_s: float) -> None:
        self._first_s = first_s
        self._pace_s = pace_s
        self.decoding = 0

    async def GenerateStream(
        self,
        request: generation_pb2.GenerateStreamRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[generation_pb2.GenerateStreamResponse]:
        asked = request.generation
        count = asked.stopping.max_tokens
        now = asyncio.get_running_loop().time
        due = now() + self._first_s
        token = generation_pb2.Token(token_ids=[7])
        self.decoding += 1
        try:
            yield generation_pb2.GenerateStreamResponse(sequence=0, accepted=generation_pb2.Accepted(model="sink"))
            for sequence in range(1, count + 1):
                await asyncio.sleep(due - now())
                yield generation_pb2.GenerateStreamResponse(sequence=sequence, token=token)
                due += self._pace_s
            yield generation_pb2.GenerateStreamResponse(
                sequence=count + 1,
                summary=generation_pb2.Summary(
                    usage=generation_pb2.Usage(prompt_tokens=len(asked.token_ids.ids), output_tokens=count),
                    timings=generation_pb2.Timings(queue=0.0),
                ),
            )
        finally:
            self.decoding -= 1


class SinkModel(model_pb2_grpc.ModelServiceServicer):
    async def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.GetModelResponse:
        return model_pb2.GetModelResponse(model=model_pb2.Model(name="sink", vocab_size=VOCAB, max_context=CONTEXT))


class SinkAdmin(admin_pb2_grpc.AdminServiceServicer):
    def __init__(self, generation: SinkGeneration) -> None:
        self._generation = generation

    async def GetServerInfo(self, request: Any, context: Any) -> admin_pb2.GetServerInfoResponse:
        return admin_pb2.GetServerInfoResponse(model="sink", policy="none", partition_backend="none", page_size=PAGE)

    async def GetLoad(self, request: Any, context: Any) -> admin_pb2.GetLoadResponse:
        return admin_pb2.GetLoadResponse(load=admin_pb2.Load(decoding=self._generation.decoding, policy="none"))


async def serve(port: int, first_s: float, pace_s: float) -> None:
    """Serves until it is killed. It says on standard output when it is ready."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
    generation = SinkGeneration(first_s, pace_s)
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(generation, server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(SinkModel(), server)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(SinkAdmin(generation), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)  # ends with its parent


class Sink:
    """`address` is HOST:PORT from when it is entered; gone when left."""

    def __init__(self, *, processes: int = 1, first_s: float = 0.0, pace_s: float = 0.05) -> None:
        self._options = [str(first_s), str(pace_s)]
        self._count = processes
        self._processes: list[subprocess.Popen[bytes]] = []
        self.address = ""

    def __enter__(self) -> Self:
        # bound but not listening: it keeps the port for the processes without taking a connection of theirs
        with socket.socket() as keeper:
            keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            keeper.bind(("127.0.0.1", 0))
            port = keeper.getsockname()[1]
            for _ in range(self._count):
                command = [sys.executable, "-m", "semipd.bench.targets.sink", str(port), *self._options]
                self._processes.append(
                    subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ))
                )
            try:
                for process in self._processes:
                    assert process.stdout is not None
                    if process.stdout.readline() != b"ready\n":
                        raise RuntimeError(f"the sink ended with code {process.wait()}")
            except BaseException:
                self.__exit__()
                raise
        self.address = f"127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()
        self._processes = []


def main() -> None:
    port, first_s, pace_s = sys.argv[1:]
    uvloop.run(serve(int(port), float(first_s), float(pace_s)))


if __name__ == "__main__":
    main()
