"""A request is logged when it is accepted and when it ends, by its id, and never with what it says."""

from __future__ import annotations

from typing import Any

from structlog.testing import capture_logs
from tokenizers import Tokenizer

from semipd.internal.v1 import gateway_pb2 as gw
from semipd.internal.v1 import sequence_pb2 as seq
from support.gateway_bench import GatewayBench, failure_of, make_delta


async def test_a_request_is_logged_twice_and_without_its_text(bench: GatewayBench, tokenizer: Tokenizer) -> None:
    with capture_logs() as logged:
        call = bench.generate(text="my secret", request_id="r-1")
        submit = await bench.coordinator.admit()
        secret = tokenizer.encode("secret too", add_special_tokens=False).ids
        await bench.coordinator.deltas(make_delta(submit.ticket, 0, secret, end=seq.END_REASON_LENGTH))
        await call
        # The end is logged before the next request is looked at.
        bench.generate(text="x", request_id="r-2")
        await bench.coordinator.expect("submit")
    mine = [entry for entry in logged if entry.get("request_id") == "r-1"]
    assert [entry["event"] for entry in mine] == ["accepted", "ended"]
    assert mine[0]["prompt_tokens"] == len(submit.prompt)
    assert (mine[1]["status"], mine[1]["output_tokens"], mine[1]["ttft_s"]) == ("OK", len(secret), 0.3)
    assert "secret" not in str(logged)


async def test_refusals_are_logged_by_their_reason_alone(bench: GatewayBench) -> None:
    with capture_logs() as logged:
        await failure_of(bench.generate(text="my secret", model="my secret", request_id="r-1"))
        await bench.coordinator.expect("door_refusal")
        call = bench.generate(text="my secret", request_id="r-2")
        submit = await bench.coordinator.expect("submit")
        await bench.coordinator.refuse(submit.ticket, "QUEUE_FULL", "512 requests wait")
        await failure_of(call)
    assert [(entry["event"], entry["request_id"]) for entry in logged] == [
        ("refused at the door", "r-1"),
        ("refused", "r-2"),
    ]
    assert "secret" not in str(logged)


async def test_a_bug_is_told_without_a_trace_and_logged_without_its_text(bench: GatewayBench) -> None:
    """The bug here: the coordinator speaks of an end which this gateway does not know."""
    unknown: Any = 99
    with capture_logs() as logged:
        call = bench.generate(text="my secret", request_id="r-1")
        submit = await bench.coordinator.admit()
        await bench.coordinator.deltas(gw.Delta(ticket=submit.ticket, tokens=[40], end=seq.End(reason=unknown)))
        details = await failure_of(call)
    assert details.info.reason == "INTERNAL"
    assert details.info.metadata["request_id"] == "r-1"
    assert "Traceback" not in details.message
    assert any(entry["log_level"] == "error" for entry in logged)
    assert "secret" not in str(logged)
