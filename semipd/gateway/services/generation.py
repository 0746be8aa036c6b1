"""GenerationService: makes a client's request a ticket at the coordinator, and brings its tokens back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from semipd.core.errors import Expired, InvalidRequest, Reason, RequestError
from semipd.core.request import Request
from semipd.gateway.coordinator_client import ANSWER_S, CoordinatorClient
from semipd.gateway.interceptor import Context, request_id
from semipd.gateway.output_sample import OutputOptions, OutputSample
from semipd.gateway.prompts import PromptEncoder
from semipd.gateway.response_buffer import ResponseBuffer
from semipd.gateway.served_model import ServedModel
from semipd.gateway.validate import REQUEST_ID, CheckedGeneration, check
from semipd.v1 import generation_pb2 as pb
from semipd.v1 import generation_pb2_grpc

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class AcceptedRequest:
    """A request that the coordinator has accepted."""

    request: Request
    checked: CheckedGeneration
    buffer: ResponseBuffer

    def usage(self) -> pb.Usage:
        return pb.Usage(prompt_tokens=len(self.request.prompt), output_tokens=self.buffer.output_tokens)

    def timings(self) -> pb.Timings | None:
        return self.buffer.samples[0].timings if self.checked.timings else None


class GenerationService(generation_pb2_grpc.GenerationServiceServicer):  # type: ignore[misc, unused-ignore]
    def __init__(self, model: ServedModel, prompts: PromptEncoder, link: CoordinatorClient) -> None:
        self._model = model
        self._prompts = prompts
        self._link = link

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        async with self._accepted(request.generation, context) as accepted:
            await accepted.buffer.wait_completed()
            return pb.GenerateResponse(
                request_id=accepted.request.request_id,
                model=self._model.name,
                samples=map(_whole, accepted.buffer.samples),
                usage=accepted.usage(),
                timings=accepted.timings(),
            )

    async def GenerateStream(self, request: pb.GenerateStreamRequest, context: Context) -> None:
        async with self._accepted(request.generation, context) as accepted:
            first = pb.Accepted(
                request_id=accepted.request.request_id,
                model=self._model.name,
                prompt_tokens=len(accepted.request.prompt),
            )
            await context.write(pb.GenerateStreamResponse(sequence=0, accepted=first))
            sequence = 1
            finished: set[int] = set()
            while samples := await accepted.buffer.changed_samples():
                for sample in samples:
                    # Taken together, since more may come while the client reads.
                    event, finish = sample.next_event(), sample.finish
                    if event is not None:
                        event.sequence = sequence
                        sequence += 1
                        await context.write(event)
                    if finish is not None and sample.index not in finished:
                        finished.add(sample.index)
                        last = pb.Finished(index=sample.index, finish=finish)
                        await context.write(pb.GenerateStreamResponse(sequence=sequence, finished=last))
                        sequence += 1
            summary = pb.Summary(usage=accepted.usage(), timings=accepted.timings())
            await context.write(pb.GenerateStreamResponse(sequence=sequence, summary=summary))

    async def Abort(self, request: pb.AbortRequest, _context: Context) -> pb.AbortResponse:
        if not REQUEST_ID.fullmatch(request.request_id):
            raise InvalidRequest.of("request_id", "must be 1 to 128 characters of [A-Za-z0-9._:-]")
        return await self._link.abort(request.request_id)

    @asynccontextmanager
    async def _accepted(self, generation: pb.Generation, context: Context) -> AsyncIterator[AcceptedRequest]:
        """Checks a request and waits until the coordinator has accepted it. At the end the ticket is closed, however it
        ends."""
        checked, request = await self._checked_request(generation, context)

        options = checked.output_options()

        def make_buffer(ticket: int) -> ResponseBuffer:
            def stop_found(index: int, output_tokens: int) -> None:
                self._link.stop_matched(ticket, index, output_tokens)

            return ResponseBuffer(
                [self._sample(index, options, request) for index in range(request.samples)], stop_found
            )

        ticket, buffer = self._link.submit(request, make_buffer)
        ended = "OK"
        try:
            await buffer.wait_admitted(ANSWER_S)
            log.info(
                "accepted",
                request_id=request.request_id,
                prompt_tokens=len(request.prompt),
                max_tokens=request.stopping.max_tokens,
                samples=request.samples,
            )
            yield AcceptedRequest(request, checked, buffer)
        except RequestError as error:
            ended = error.reason.value
            raise
        except asyncio.CancelledError:
            remaining_s = _deadline_s(context)
            late = remaining_s is not None and remaining_s <= 0
            ended = (Reason.EXPIRED_RUNNING if late else Reason.CANCELLED_BY_CLIENT).value
            raise
        except BaseException:
            ended = Reason.INTERNAL.value
            raise
        finally:
            self._link.close(ticket)
            _log_end(request, buffer, ended)

    async def _checked_request(self, generation: pb.Generation, context: Context) -> tuple[CheckedGeneration, Request]:
        """Returns the request. Raises RequestError; the coordinator then only counts it."""
        try:
            if REQUEST_ID.fullmatch(generation.request_id):
                request_id.set(generation.request_id)
            checked = check(generation, self._model, self._prompts.features)
            request_id.set(checked.request_id)
            field, prompt = await self._prompts.encode_generation(generation)
            deadline_s = _deadline_s(context)
            if deadline_s is not None and deadline_s <= 0:
                raise Expired("the deadline passed before the request was accepted", reason=Reason.EXPIRED_IN_QUEUE)
            return checked, checked.request(prompt, field, self._model, deadline_s)
        except RequestError as error:
            log.info("refused at the door", request_id=request_id.get(), reason=error.reason.value)
            self._link.count_refusal(error.reason)
            raise

    def _sample(self, index: int, options: OutputOptions, request: Request) -> OutputSample:
        wanted = options.text or options.stops is not None
        return OutputSample(index, options, self._prompts.detokenizer(request.prompt) if wanted else None)


def _deadline_s(context: Context) -> float | None:
    """Returns the seconds that the client still waits; None: for ever."""
    remaining: float | None = context.time_remaining()
    return remaining


def _whole(sample: OutputSample) -> pb.Sample:
    event = sample.next_event()
    token = event.token if event is not None else pb.Token()
    return pb.Sample(
        index=sample.index,
        text=token.text,
        token_ids=token.token_ids,
        logprobs=token.logprobs,
        finish=sample.finish,
    )


def _log_end(request: Request, buffer: ResponseBuffer, status: str) -> None:
    timings = buffer.samples[0].timings
    times = {}
    if timings is not None:
        times = {"ttft_s": round(timings.time_to_first_token, 4), "decode_s": round(timings.decode, 4)}
    log.info(
        "ended" if buffer.admitted else "refused",
        request_id=request.request_id,
        status=status,
        prompt_tokens=len(request.prompt),
        output_tokens=buffer.output_tokens,
        **times,
    )
