from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from fake_server import PATIENCE_S, Events, FakeServer, refuse, silent, until_left
from grpc_health.v1 import health_pb2

from semipd_client import AsyncClient, Cancelled, DeadlineExceeded, Internal, QueueFull, Token, Unavailable
from semipd_client._proto.semipd.v1 import admin_pb2, generation_pb2


@pytest_asyncio.fixture
async def client(server: FakeServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.address, timeout=PATIENCE_S) as made:
        yield made


async def left(server: FakeServer) -> bool:
    return await asyncio.to_thread(server.left.wait, PATIENCE_S)


async def test_iterating_gives_the_text_and_fills_in_the_rest(client: AsyncClient) -> None:
    async with client.stream("p") as stream:
        assert [text async for text in stream] == ["Hi", "!"]
    assert (stream.text, stream.token_ids) == ("Hi!", (1, 2))
    assert stream.usage is not None
    assert stream.usage.output_tokens == 2
    assert (await stream.result()).text == "Hi!"


async def test_events_are_typed(client: AsyncClient) -> None:
    events = [event async for event in client.stream("p").events()]
    assert events[1] == Token(0, "Hi", (1,), ())


async def test_generate_gives_the_whole_answer(server: FakeServer, client: AsyncClient) -> None:
    sample = generation_pb2.Sample(text="Hi")
    server.answer = lambda *_: generation_pb2.GenerateResponse(samples=[sample])
    assert (await client.generate("p", temperature=0)).text == "Hi"
    assert server.seen[-1].generation.sampling.HasField("temperature")


async def test_break_cancels_at_the_server(server: FakeServer, client: AsyncClient) -> None:
    server.stream = until_left
    async with client.stream("p") as stream:
        async for _ in stream:
            break
    assert await left(server)


async def test_break_without_a_with_cancels_too(server: FakeServer, client: AsyncClient) -> None:
    server.stream = until_left
    async for _ in client.stream("p"):
        break
    assert await left(server)


async def test_a_cancelled_task_cancels_at_the_server(server: FakeServer, client: AsyncClient) -> None:
    server.stream = silent
    began = asyncio.Event()

    async def read() -> None:
        async for _ in client.stream("p").events():
            began.set()

    task = asyncio.create_task(read())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await left(server)


async def test_close_by_another_task_is_cancelled_and_no_cancellation_of_the_task(
    server: FakeServer, client: AsyncClient
) -> None:
    server.stream = silent
    stream = client.stream("p")
    events = stream.events()
    await anext(events)
    asyncio.get_running_loop().call_soon(stream.close)
    with pytest.raises(Cancelled):
        await anext(events)


async def test_the_deadline(server: FakeServer, client: AsyncClient) -> None:
    server.stream = silent
    for timeout in (1.0, 10.0, 60.0):  # where the machine is busy a request may come too late for the first of these
        with pytest.raises(DeadlineExceeded):
            await client.stream("p", timeout=timeout).result()
        if server.seen:
            break
    assert await left(server)


async def test_errors_carry_the_reason_and_the_delay(server: FakeServer, client: AsyncClient) -> None:
    server.answer = lambda q, c: refuse(c, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after_s=2)
    with pytest.raises(QueueFull) as caught:
        await client.generate("p")
    assert (caught.value.reason, caught.value.retry_after_s) == ("QUEUE_FULL", 2.0)


async def test_an_error_in_a_stream(server: FakeServer, client: AsyncClient) -> None:
    def fails(_generation: generation_pb2.Generation, context: grpc.ServicerContext) -> Events:
        refuse(context, grpc.StatusCode.INTERNAL, "INTERNAL", metadata={"request_id": "r1"})
        yield from ()

    server.stream = fails
    with pytest.raises(Internal) as caught:
        await client.stream("p").result()
    assert caught.value.metadata == {"request_id": "r1"}


async def test_many_streams_at_once(server: FakeServer, client: AsyncClient) -> None:
    answers = await asyncio.gather(*(client.stream("p").result() for _ in range(6)))
    assert [a.text for a in answers] == ["Hi!"] * 6


async def test_watching_the_load_ends_with_the_loop(server: FakeServer, client: AsyncClient) -> None:
    async with client.watch_load() as reports:
        async for load in reports:
            if load.waiting == 3:
                break
    assert await left(server)


async def test_admin(server: FakeServer, client: AsyncClient) -> None:
    server.answer = lambda q, _: admin_pb2.SetPartitionResponse(granted=q.partition)
    assert (await client.set_partition(60, 40)).prefill == 60
    server.answer = lambda *_: admin_pb2.SetPolicyResponse(previous="fcfs")
    assert await client.set_policy("static") == "fcfs"


async def test_wait_ready(server: FakeServer, client: AsyncClient) -> None:
    waiting = asyncio.create_task(client.wait_ready(10))
    await waiting
    server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert not await client.is_serving()
    with pytest.raises(Unavailable) as caught:
        await client.wait_ready(0.2)
    assert caught.value.reason == "NOT_READY"


async def test_nobody_there() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(Unavailable):
            await client.generate("p")
