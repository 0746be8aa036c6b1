"""The life of a stream, from the door to its summary."""

from __future__ import annotations

from semipd.internal.v1 import sequence_pb2 as seq
from semipd.v1 import generation_pb2 as pb


async def test_a_stream_is_accepted_tokens_finished_summary(bench, tokenizer, make_delta):
    call = bench.stream(text="hello", request_id="r-1")
    submit = await bench.coordinator.admit()
    assert list(submit.prompt) == tokenizer.encode("hello").ids
    assert submit.request_id == "r-1"
    tokens = tokenizer.encode(" world", add_special_tokens=False).ids
    for position, token in enumerate(tokens):
        end = seq.END_REASON_LENGTH if position == len(tokens) - 1 else None
        await bench.coordinator.deltas(make_delta(submit.ticket, position, [token], end=end))
    events = [event async for event in call]
    assert [event.sequence for event in events] == list(range(len(events)))
    assert events[0].accepted == pb.Accepted(request_id="r-1", model="tiny", prompt_tokens=len(submit.prompt))
    told = [event.token for event in events if event.HasField("token")]
    assert "".join(token.text for token in told) == " world"
    assert [i for token in told for i in token.token_ids] == tokens
    assert events[-2].finished == pb.Finished(finish=pb.Finish(reason=pb.FINISH_REASON_LENGTH))
    summary = events[-1].summary
    assert summary.usage == pb.Usage(prompt_tokens=len(submit.prompt), output_tokens=len(tokens))
    assert summary.timings.decode == 0.4
