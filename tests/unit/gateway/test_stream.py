"""The life of a stream, from the door to its summary, and of a whole answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import pytest
from tokenizers import Tokenizer

from semipd.internal.v1 import gateway_pb2 as gw
from semipd.internal.v1 import sequence_pb2 as seq
from semipd.v1 import generation_pb2 as pb
from support.gateway_bench import GatewayBench, OpenBench, failure_of, make_delta

Encode = Callable[[str], list[int]]

LENGTH = seq.END_REASON_LENGTH


async def rest(call: Any) -> list[pb.GenerateStreamResponse]:
    """Reads the events that are still to come, to the end."""
    events = []
    while (event := await call.read()) is not grpc.aio.EOF:
        events.append(event)
    return events


def text_of(events: Sequence[pb.GenerateStreamResponse], index: int = 0) -> str:
    return "".join(e.token.text for e in events if e.HasField("token") and e.token.index == index)


def tokens_of(events: Sequence[pb.GenerateStreamResponse], index: int = 0) -> list[int]:
    return [i for e in events if e.HasField("token") and e.token.index == index for i in e.token.token_ids]


@pytest.fixture
def ids(tokenizer: Tokenizer) -> Encode:
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.fixture
def letters(tokenizer: Tokenizer) -> Encode:
    """Makes a token of each letter, however the tokenizer would have put them together."""
    vocabulary = tokenizer.get_vocab()
    return lambda text: [vocabulary[letter.replace(" ", "Ġ")] for letter in text]


async def test_a_stream_is_accepted_tokens_finished_summary(
    bench: GatewayBench, tokenizer: Tokenizer, ids: Encode
) -> None:
    call = bench.stream(text="hello", request_id="r-1")
    submit = await bench.coordinator.admit()
    assert list(submit.prompt) == tokenizer.encode("hello").ids
    assert submit.request_id == "r-1"
    tokens = ids(" world")
    for position, token in enumerate(tokens):
        end = LENGTH if position == len(tokens) - 1 else None
        await bench.coordinator.deltas(make_delta(submit.ticket, position, [token], end=end))
    events = await rest(call)
    assert [event.sequence for event in events] == list(range(len(events)))
    assert events[0].accepted == pb.Accepted(request_id="r-1", model="tiny", prompt_tokens=len(submit.prompt))
    assert text_of(events) == " world"
    assert tokens_of(events) == tokens
    assert events[-2].finished == pb.Finished(finish=pb.Finish(reason=pb.FINISH_REASON_LENGTH))
    assert events[-1].summary.usage == pb.Usage(prompt_tokens=len(submit.prompt), output_tokens=len(tokens))
    assert events[-1].summary.timings.decode == 0.4


async def test_a_request_carries_what_was_asked(bench: GatewayBench) -> None:
    call = bench.stream(
        token_ids=pb.TokenIds(ids=[5, 6]),
        sampling=pb.SamplingParams(temperature=0.5, seed=7, n=2, logit_bias={3: -100}),
        stopping=pb.StoppingParams(max_tokens=9, stop_token_ids=[8], time_limit=4),
        scheduling=pb.SchedulingParams(priority=-3, ttft_slo=0.5),
        timeout=60,
    )
    submit = await bench.coordinator.expect("submit")
    assert list(submit.prompt) == [5, 6]
    assert (submit.sampling.temperature, submit.sampling.seed, submit.samples) == (0.5, 7, 2)
    assert dict(submit.sampling.logit_bias) == {3: -100}
    assert (submit.stopping.max_tokens, list(submit.stopping.stop_token_ids)) == (9, [1, 8])
    assert (submit.priority, submit.ttft_slo_s, submit.time_limit_s) == (-3, 0.5, 4)
    assert not submit.HasField("tpot_slo_s")
    assert 50 < submit.deadline_s < 65  # gRPC rounds what it sends
    call.cancel()


async def test_nothing_is_sent_before_the_coordinator_says_yes(bench: GatewayBench) -> None:
    call = bench.stream(text="hello", request_id="r-2")
    submit = await bench.coordinator.expect("submit")
    await bench.coordinator.refuse(submit.ticket, "QUEUE_FULL", retry_after_s=2.5)
    details = await failure_of(call.read())
    assert details.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details.info.reason == "QUEUE_FULL"
    assert details.info.metadata["request_id"] == "r-2"
    assert details.retry_ms == 2500
    assert details.trailers["grpc-retry-pushback-ms"] == "2500"


async def test_leaving_the_stream_cancels_the_request(bench: GatewayBench, ids: Encode) -> None:
    call = bench.stream(text="hello")
    submit = await bench.coordinator.admit()
    await bench.coordinator.deltas(make_delta(submit.ticket, 0, ids("h")))
    assert (await call.read()).HasField("accepted")
    call.cancel()
    cancel = await bench.coordinator.expect("cancel")
    assert (cancel.ticket, cancel.cause) == (submit.ticket, gw.CANCEL_CAUSE_CLIENT_GONE)


async def test_a_client_that_leaves_while_it_waits_for_a_whole_answer_cancels_it(bench: GatewayBench) -> None:
    call = bench.generate(text="hello")
    submit = await bench.coordinator.admit()
    call.cancel()
    assert (await bench.coordinator.expect("cancel")).ticket == submit.ticket


async def test_a_deadline_that_passes_cancels_the_request(bench: GatewayBench) -> None:
    call = bench.stream(text="hello", timeout=2.0)
    submit = await bench.coordinator.admit()
    assert submit.deadline_s <= 2.0
    assert (await call.read()).HasField("accepted")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await bench.coordinator.expect("cancel")).ticket == submit.ticket


async def test_a_failure_in_mid_stream_ends_it_with_its_reason(bench: GatewayBench, ids: Encode) -> None:
    call = bench.stream(text="hello")
    submit = await bench.coordinator.admit()
    await bench.coordinator.deltas(make_delta(submit.ticket, 0, ids("h")))
    assert (await call.read()).HasField("accepted")
    assert (await call.read()).token.text == "h"
    await bench.coordinator.refuse(submit.ticket, "WORKER_LOST")
    details = await failure_of(call.read())
    assert (details.code, details.info.reason) == (grpc.StatusCode.UNAVAILABLE, "WORKER_LOST")


async def test_a_reason_that_nobody_knows_is_internal(bench: GatewayBench) -> None:
    call = bench.generate(text="hello")
    submit = await bench.coordinator.admit()
    await bench.coordinator.refuse(submit.ticket, "WHO_KNOWS")
    assert (await failure_of(call)).info.reason == "INTERNAL"


async def test_known_tokens_that_come_again_are_dropped(bench: GatewayBench, ids: Encode) -> None:
    call = bench.generate(text="x")
    submit = await bench.coordinator.admit()
    tokens = ids("hello there world")
    await bench.coordinator.deltas(
        make_delta(submit.ticket, 0, tokens[:3]),
        make_delta(submit.ticket, 0, tokens[:3]),
        make_delta(submit.ticket, 1, tokens[1:4]),
    )
    await bench.coordinator.deltas(make_delta(submit.ticket, 2, tokens[2:], end=LENGTH))
    [sample] = (await call).samples
    assert list(sample.token_ids) == tokens
    assert sample.text == "hello there world"


async def test_missing_tokens_fail_the_request_as_a_bug(bench: GatewayBench, ids: Encode) -> None:
    call = bench.generate(text="x", request_id="gap")
    submit = await bench.coordinator.admit()
    await bench.coordinator.deltas(make_delta(submit.ticket, 1, ids("h")))
    details = await failure_of(call)
    assert (details.code, details.info.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert details.info.metadata["request_id"] == "gap"
    assert (await bench.coordinator.expect("cancel")).ticket == submit.ticket


async def test_samples_end_one_by_one_and_the_summary_comes_last(bench: GatewayBench, ids: Encode) -> None:
    call = bench.stream(text="x", sampling=pb.SamplingParams(n=2))
    submit = await bench.coordinator.admit()
    assert submit.samples == 2
    await bench.coordinator.deltas(make_delta(submit.ticket, 0, ids("a"), index=1, end=LENGTH))
    first = [await call.read() for _ in range(3)]
    assert first[-1].finished.index == 1
    await bench.coordinator.deltas(make_delta(submit.ticket, 0, ids("b")))
    await bench.coordinator.deltas(make_delta(submit.ticket, 1, [1], end=seq.END_REASON_STOP_TOKEN))
    events = first + await rest(call)
    assert [event.sequence for event in events] == list(range(len(events)))
    assert (text_of(events, 0), text_of(events, 1)) == ("b", "a")
    finish = next(e.finished.finish for e in events if e.HasField("finished") and e.finished.index == 0)
    assert finish == pb.Finish(reason=pb.FINISH_REASON_STOP, stop_token_id=1)
    assert events[-1].summary.usage.output_tokens == 3


@pytest.mark.parametrize(("include_stop", "told"), [(False, [104, 105]), (True, [104, 105, 106])])
async def test_a_stop_token_is_in_the_answer_only_if_asked(
    bench: GatewayBench, include_stop: bool, told: list[int]
) -> None:
    call = bench.generate(text="x", stopping=pb.StoppingParams(stop_token_ids=[106], include_stop=include_stop))
    submit = await bench.coordinator.admit()
    await bench.coordinator.deltas(make_delta(submit.ticket, 0, [104, 105, 106], end=seq.END_REASON_STOP_TOKEN))
    answer = await call
    assert list(answer.samples[0].token_ids) == told
    assert answer.usage.output_tokens == 3


async def test_a_slow_reader_gets_merged_deltas_and_misses_none(open_bench: OpenBench, ids: Encode) -> None:
    async with open_bench(options=[("grpc.http2.lookahead_bytes", 1024)]) as bench:
        call = bench.stream(text="x", stopping=pb.StoppingParams(max_tokens=100))
        submit = await bench.coordinator.admit()
        assert (await call.read()).HasField("accepted")
        [letter] = ids("a")
        # Alternatives make each token so large that a few dozen fill what gRPC buffers on the way.
        top = [pb.TopLogprob(token_id=i, logprob=-1.5) for i in range(3000)]
        for position in range(100):
            end = LENGTH if position == 99 else None
            logprobs = [pb.Logprob(token_id=letter, logprob=-0.5, top=top)]
            await bench.coordinator.deltas(make_delta(submit.ticket, position, [letter], end=end, logprobs=logprobs))
        # An answer to a later question: everything before has been delivered.
        abort = asyncio.ensure_future(bench.generation.Abort(pb.AbortRequest(request_id="other")))
        ask = await bench.coordinator.expect("cancel")
        await bench.coordinator.say(answer=gw.Answer(ask_id=ask.ask_id, abort=pb.AbortResponse()))
        await abort
        events = await rest(call)
        assert tokens_of(events) == [letter] * 100
        assert text_of(events) == "a" * 100
        assert sum(len(e.token.logprobs) for e in events) == 100
        assert sum(e.HasField("token") for e in events) < 100


async def test_half_a_character_is_never_told(bench: GatewayBench, tokenizer: Tokenizer) -> None:
    call = bench.stream(text="x", response=pb.ResponseParams(token_ids=False))
    submit = await bench.coordinator.admit()
    tokens = tokenizer.encode("a😀", add_special_tokens=False).ids
    assert len(tokens) == 5
    assert (await call.read()).HasField("accepted")
    for position, token in enumerate(tokens[:-1]):
        await bench.coordinator.deltas(make_delta(submit.ticket, position, [token]))
    assert (await call.read()).token.text == "a"
    await bench.coordinator.deltas(make_delta(submit.ticket, 4, tokens[-1:]))
    assert (await call.read()).token.text == "😀"
    await bench.coordinator.deltas(make_delta(submit.ticket, 5, tokens[1:2], end=LENGTH))
    assert text_of(await rest(call)) == "\N{REPLACEMENT CHARACTER}"


async def test_what_is_not_wanted_is_left_out(bench: GatewayBench, ids: Encode) -> None:
    call = bench.generate(text="x", response=pb.ResponseParams(text=False, timings=False, logprobs=True))
    submit = await bench.coordinator.admit()
    assert submit.sampling.logprobs
    logprob = pb.Logprob(token_id=9, logprob=-1.0)
    await bench.coordinator.deltas(make_delta(submit.ticket, 0, [9], end=LENGTH, logprobs=[logprob]))
    answer = await call
    [sample] = answer.samples
    assert (sample.text, list(sample.token_ids), list(sample.logprobs)) == ("", [9], [logprob])
    assert not answer.HasField("timings")


class TestStopStrings:
    """The gateway finds them, ends the sample for the client, and tells the coordinator."""

    async def _stopped(
        self, bench: GatewayBench, letters: Encode, **stopping: Any
    ) -> tuple[list[pb.GenerateStreamResponse], gw.StopMatched, list[int]]:
        """Streams "hello there world", a token a delta, and returns the events and what was told to stop."""
        call = bench.stream(text="x", stopping=pb.StoppingParams(**stopping))
        submit = await bench.coordinator.admit()
        tokens = letters("hello there world")
        for position, token in enumerate(tokens):
            await bench.coordinator.deltas(make_delta(submit.ticket, position, [token]))
        matched = await bench.coordinator.expect("stop_matched")
        end = make_delta(submit.ticket, len(tokens), [], end=seq.END_REASON_STOP_STRING)
        await bench.coordinator.deltas(end)
        return await rest(call), matched, tokens

    async def test_across_token_borders_the_text_ends_before_the_stop(
        self, bench: GatewayBench, letters: Encode
    ) -> None:
        events, matched, tokens = await self._stopped(bench, letters, stop=["re wo"])
        assert text_of(events) == "hello the"
        assert matched.index == 0
        assert matched.output_tokens < len(tokens)
        assert tokens_of(events) == tokens[: len(tokens_of(events))]
        finish = next(e.finished.finish for e in events if e.HasField("finished"))
        assert finish == pb.Finish(reason=pb.FINISH_REASON_STOP, stop="re wo")
        assert events[-1].summary.usage.output_tokens == matched.output_tokens
        assert events[-1].summary.timings.decode == 0.4

    async def test_the_stop_stays_where_it_is_asked_for(self, bench: GatewayBench, letters: Encode) -> None:
        events, matched, tokens = await self._stopped(bench, letters, stop=["re wo"], include_stop=True)
        assert text_of(events) == "hello there wo"
        assert tokens_of(events) == tokens[: matched.output_tokens]

    async def test_min_tokens_come_before_any_stop(self, bench: GatewayBench, letters: Encode) -> None:
        events, matched, _tokens = await self._stopped(bench, letters, stop=["h", "ld"], min_tokens=8)
        assert matched.output_tokens == 8
        assert text_of(events) == "hello t"

    async def test_the_client_hears_of_the_end_before_the_coordinator_agrees(
        self, bench: GatewayBench, letters: Encode
    ) -> None:
        call = bench.stream(text="x", stopping=pb.StoppingParams(stop=["lo"]))
        submit = await bench.coordinator.admit()
        await bench.coordinator.deltas(make_delta(submit.ticket, 0, letters("hello world")))
        events = [await call.read() for _ in range(3)]
        assert text_of(events) == "hel"
        assert events[-1].HasField("finished")
        # The sample had ended by itself in the same moment: that word counts as the answer.
        await bench.coordinator.expect("stop_matched")
        await bench.coordinator.deltas(make_delta(submit.ticket, 11, [4], end=LENGTH))
        assert (await call.read()).summary.usage.output_tokens == 5

    async def test_text_held_back_is_told_at_another_end(self, bench: GatewayBench, letters: Encode) -> None:
        call = bench.generate(text="x", stopping=pb.StoppingParams(stop=["world!"]))
        submit = await bench.coordinator.admit()
        tokens = letters("hello world")
        await bench.coordinator.deltas(make_delta(submit.ticket, 0, tokens, end=LENGTH))
        [sample] = (await call).samples
        assert (sample.text, list(sample.token_ids)) == ("hello world", tokens)
        assert sample.finish.reason == pb.FINISH_REASON_LENGTH
