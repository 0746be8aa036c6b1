"""Measures what a streamed token costs a gateway in CPU time: `python benchmarks/gateway_cost.py [--streams 16]
[--tokens 500]`.

A real gateway process serves real gRPC streams. This process plays the coordinator, one message a step with a token for
each stream, as the decode worker's steps come; another reads the streams. Prints the gateway's user and system time
per token. No model is computed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import zmq

from semipd.core.config import ServerConfig
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.internal.v1 import sequence_pb2 as seq
from semipd.v1 import generation_pb2 as pb
from semipd.v1 import generation_pb2_grpc
from semipd.wire.sockets import RunDir, bind_router


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read_streams(port: int, streams: int, tokens: int, stop: str) -> None:
    async def read() -> int:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            stopping = pb.StoppingParams(max_tokens=tokens, stop=[stop] if stop else [])
            generation = pb.Generation(token_ids=pb.TokenIds(ids=[5, 6, 7]), stopping=stopping)

            async def one() -> int:
                call = stub.GenerateStream(pb.GenerateStreamRequest(generation=generation))
                return sum([event.HasField("token") async for event in call])

            return sum(await asyncio.gather(*[one() for _ in range(streams)]))

    print(f"events for {streams * tokens} tokens: {asyncio.run(read())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--step-ms", type=float, default=8.0, help="between two steps; 0: as fast as they go")
    parser.add_argument("--stop", default="", help="a stop string that the streams watch for")
    parser.add_argument("--model", default="", help="model directory; default: the bundled model")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = RunDir(Path(folder))
        config = ServerConfig(model=given.model, port=0, max_context=given.tokens + 16, log_level="warning")
        run_dir.config.write_text(config.to_json())
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        router = bind_router(context, run_dir.gateway_endpoint)
        module = ["-m", "semipd.wire.child", "semipd.gateway"]
        command = [sys.executable, *module, "--run-dir", folder, "--name", "gateway.0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as gateway:
            assert gateway.stdout is not None
            said = json.loads(gateway.stdout.readline())
            if said["event"] != "listening":
                raise SystemExit(said["error"])
            reader = multiprocessing.get_context("spawn").Process(
                target=read_streams, args=(said["port"], given.streams, given.tokens, given.stop)
            )
            reader.start()
            tickets: list[int] = []
            while len(tickets) < given.streams:
                identity, frame = router.recv_multipart()
                message = gw.FromGateway.FromString(frame)
                if message.HasField("submit"):
                    tickets.append(message.submit.ticket)
                    admitted = gw.ToGateway(admitted=gw.Admitted(ticket=tickets[-1]))
                    router.send_multipart((identity, admitted.SerializeToString()))
            before, started = cpu_s(gateway.pid), time.perf_counter()
            for position in range(given.tokens):
                end = seq.End(reason=seq.END_REASON_LENGTH) if position == given.tokens - 1 else None
                deltas = [gw.Delta(ticket=t, position=position, tokens=[40 + position % 200], end=end) for t in tickets]
                router.send_multipart((identity, gw.ToGateway(deltas=gw.Deltas(deltas=deltas)).SerializeToString()))
                time.sleep(given.step_ms / 1000)
            reader.join()
            spent, wall = cpu_s(gateway.pid) - before, time.perf_counter() - started
            count = given.streams * given.tokens
            print(f"{spent / count * 1e6:.1f} us of CPU a token; {count / wall:.0f} tokens/s")
            gateway.terminate()
        router.close()
        context.term()


if __name__ == "__main__":
    main()
