"""The life of a request through the coordinator, by its messages."""

from __future__ import annotations

from semipd.core.request import EndReason, Slo
from semipd.internal.v1 import gateway_pb2 as gw
from semipd.internal.v1 import worker_pb2 as wk
from support.stage import GATEWAY, Stage


def test_a_request_is_prefilled_handed_over_and_decoded_to_its_end() -> None:
    stage = Stage()
    lease = stage.running(1, max_tokens=3)
    stage.step([(lease, 1, 8)])
    stage.step([(lease, 2, 9)], ends=[lease])
    assert stage.tokens(1) == [7, 8, 9]
    last = stage.transport.deltas[1][-1]
    assert last.end is not None
    assert last.end.reason is EndReason.LENGTH
    assert last.timings is not None
    assert stage.all_pages_are_free()
    assert len(stage.state.requests) == 0


def test_nothing_precedes_admitted() -> None:
    stage = Stage()
    stage.submit(1)
    assert [m.WhichOneof("message") for m in stage.transport.gateway] == ["admitted"]


def test_a_live_duplicate_id_is_refused_and_the_first_lives_on() -> None:
    stage = Stage()
    stage.submit(1)
    stage.coordinator.on_gateway_message(GATEWAY, _same_id_as_ticket_1())
    assert stage.reasons() == {2: "DUPLICATE_REQUEST"}
    assert len(stage.state.requests) == 1


def _same_id_as_ticket_1() -> gw.FromGateway:
    submit = gw.Submit(ticket=2, request_id="r1", prompt=[1], samples=1)
    submit.stopping.max_tokens = 1
    submit.sampling.repetition_penalty = 1.0
    return gw.FromGateway(submit=submit)


def test_a_full_queue_refuses_at_once_with_a_delay() -> None:
    stage = Stage(max_waiting=2)
    del stage.state.workers[stage.prefill.role]
    for ticket in (1, 2, 3):
        stage.submit(ticket)
    assert stage.reasons() == {3: "QUEUE_FULL"}
    ended = [m.ended for m in stage.transport.gateway if m.HasField("ended")]
    assert ended[0].failure.retry_after_s > 0


def test_a_long_prompt_is_cut_into_chunks_within_the_batch_limit() -> None:
    stage = Stage(max_batch_tokens=32)
    stage.submit(1, prompt=70)
    sizes = []
    for _ in range(3):
        for batch in stage.batches():
            sizes.append(sum(len(c.tokens) for c in batch.chunks))
            assert [c.HasField("continuation") for c in batch.chunks] == [sum(sizes) == 70]
            stage.prefill_batch(batch)
    assert sizes == [32, 32, 6]
    assert stage.tokens(1) == [7]


def test_each_sample_has_its_own_seed_and_its_own_end() -> None:
    stage = Stage()
    stage.submit(1, samples=2, max_tokens=2)
    (batch,) = stage.batches()
    seeds = [c.continuation.sampling.seed for c in batch.chunks]
    assert seeds[1] == seeds[0] + 1
    stage.prefill_batch(batch)
    first, second = (a.lease for a in stage.adopts())
    stage.step([(first, 1, 8), (second, 1, 9)], ends=[first, second])
    assert (stage.tokens(1, 0), stage.tokens(1, 1)) == ([7, 8], [7, 9])
    assert len(stage.state.requests) == 0


def test_a_cancel_in_each_stage_frees_all_pages() -> None:
    stage = Stage(max_batch_tokens=16)
    for ticket, prompt in ((1, 40), (2, 40)):
        stage.submit(ticket, prompt=prompt)
    first, second = stage.batches()
    stage.gateway_says(gw.FromGateway(cancel=gw.Cancel(ticket=1, cause=gw.CANCEL_CAUSE_CLIENT_GONE)))
    for batch in (first, second):
        stage.prefill_batch(batch)  # computed meanwhile
    while batches := stage.batches():
        for batch in batches:
            stage.prefill_batch(batch)
    (adopt,) = stage.adopts()
    stage.gateway_says(gw.FromGateway(cancel=gw.Cancel(ticket=2, cause=gw.CANCEL_CAUSE_CLIENT_GONE)))
    assert stage.drops(stage.decode) == [adopt.lease]
    stage.account.release(adopt.lease, stage.decode.holder)
    stage.decode_says(wk.StepDone(dropped=[adopt.lease]))
    assert stage.all_pages_are_free()
    assert stage.reasons() == {1: "CANCELLED_BY_CLIENT", 2: "CANCELLED_BY_CLIENT"}


def test_abort_by_id_says_what_it_found() -> None:
    stage = Stage()
    stage.submit(1)
    for ask_id in (5, 6):
        cancel = gw.Cancel(request_id="r1", cause=gw.CANCEL_CAUSE_OPERATOR, ask_id=ask_id)
        stage.gateway_says(gw.FromGateway(cancel=cancel))
    outcomes = [(m.answer.ask_id, m.answer.abort.outcome) for m in stage.transport.gateway if m.HasField("answer")]
    assert outcomes == [(5, 1), (6, 2)]
    assert stage.reasons() == {1: "ABORTED_BY_OPERATOR"}


def test_a_deadline_that_passes_in_the_queue_means_no_prefill() -> None:
    stage = Stage()
    del stage.state.workers[stage.prefill.role]
    stage.submit(1, deadline_s=1.0)
    stage.clock.advance(1.5)
    stage.coordinator.act()
    stage.prefill = stage.assign(stage.prefill.role)
    stage.coordinator.act()
    assert stage.reasons() == {1: "EXPIRED_IN_QUEUE"}
    assert stage.batches() == []


def test_a_deadline_that_passes_while_it_runs() -> None:
    stage = Stage()
    stage.running(1, deadline_s=1.0)
    stage.clock.advance(1.0)
    stage.coordinator.act()
    assert stage.reasons() == {1: "EXPIRED_RUNNING"}


def test_the_time_limit_ends_the_answer_as_it_is() -> None:
    stage = Stage()
    lease = stage.running(1, time_limit_s=1.0)
    stage.clock.advance(1.0)
    stage.coordinator.act()
    end = stage.transport.deltas[1][-1].end
    assert end is not None
    assert end.reason is EndReason.TIME_LIMIT
    assert stage.tokens(1) == [7]
    assert stage.drops(stage.decode) == [lease]


def test_a_stop_string_ends_the_sample_and_late_tokens_have_no_effect() -> None:
    stage = Stage()
    lease = stage.running(1)
    stage.gateway_says(gw.FromGateway(stop_matched=gw.StopMatched(ticket=1, index=0, output_tokens=1)))
    stage.step([(lease, 1, 8)])
    end = stage.transport.deltas[1][-1].end
    assert end is not None
    assert end.reason is EndReason.STOP_STRING
    assert stage.tokens(1) == [7]


def test_decode_limit_holds_back_what_is_ready() -> None:
    stage = Stage(max_running=1)
    stage.submit(1, max_tokens=2)
    stage.submit(2, max_tokens=2)
    stage.prefill_all()
    (first,) = stage.adopts()
    stage.step([(first.lease, 1, 8)], ends=[first.lease])
    (second,) = stage.adopts()
    assert first.lease != second.lease


def test_priority_goes_first() -> None:
    stage = Stage(max_batch_tokens=16)
    del stage.state.workers[stage.prefill.role]
    stage.submit(1, prompt=16)
    stage.submit(2, prompt=16, priority=5)
    stage.prefill = stage.assign(stage.prefill.role)
    stage.coordinator.act()
    (batch,) = stage.batches()
    assert batch.chunks[0].request_id == "r2"


def test_attainment_counts_requests_against_the_slos_that_they_named() -> None:
    stage = Stage()
    lease = stage.running(1, max_tokens=2, slo=Slo(ttft_s=10.0, tpot_s=0.01))
    stage.clock.advance(1.0)
    stage.step([(lease, 1, 8)], ends=[lease])
    assert stage.coordinator.admin.load().slo_attainment == 0.0


def test_draining_refuses_new_requests_and_answers_when_none_is_left() -> None:
    stage = Stage()
    lease = stage.running(1, max_tokens=2)
    ask = gw.Ask(ask_id=9)
    ask.drain.SetInParent()
    stage.gateway_says(gw.FromGateway(ask=ask))
    stage.submit(2)
    assert stage.reasons() == {2: "DRAINING"}
    assert stage.told("answer") == []
    stage.step([(lease, 1, 8)], ends=[lease])
    (answer,) = stage.told("answer")
    assert answer.drain.remaining == 0


def test_a_snapshot_stays_as_it_was_however_late_it_is_looked_at() -> None:
    stage = Stage()
    lease = stage.running(1)
    first = stage.clock.now()
    taken = stage.coordinator.snapshot()
    stage.clock.advance(0.5)
    stage.step([(lease, 1, 8)])
    (now,), (then,) = stage.coordinator.snapshot().running, taken.running
    assert (then.output_tokens, then.context_tokens, then.last_token_s) == (1, 21, first)
    assert (now.output_tokens, now.context_tokens, now.last_token_s) == (2, 22, first + 0.5)
