"""Checks a Generation before the coordinator sees it: every bad field at once, each by the name that the API gives it.

There are two steps, because the prompt's length is known only after tokenisation: `check` looks at everything that the
client wrote, `CheckedGeneration.request` at what follows from the prompt.
"""

from __future__ import annotations

import math
import random
import re
import secrets
from collections.abc import Sequence, Sized
from dataclasses import dataclass

from google.protobuf.message import Message

from semipd.core.errors import FieldViolation, InvalidRequest, NotFound, PromptTooLong, Unsupported
from semipd.core.request import Request, SamplingParams, Slo, StoppingParams
from semipd.gateway.output_sample import OutputOptions
from semipd.gateway.served_model import ServedModel
from semipd.gateway.stop_strings import StopStrings
from semipd.v1 import generation_pb2 as pb

MAX_SAMPLES = 16
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 300
MAX_PRIORITY = 100
MAX_MESSAGES = 4096
"""Most messages of a chat. Like the other limits, it keeps a request from costing its neighbours time."""
MAX_UINT31 = 2**31 - 1
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
SHOWN_NAME = 80


@dataclass(frozen=True, slots=True)
class CheckpointFeatures:
    """Says what the checkpoint has beside its weights: a tokenizer (text) and a chat template."""

    text: bool
    chat: bool


class Violations:
    """Gathers what is wrong with a request; `raise_if_any` tells it all at once."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []

    def add(self, field: str, description: str) -> None:
        self._found.append(FieldViolation(field, description))

    def raise_if_any(self) -> None:
        if self._found:
            raise InvalidRequest(self._found)

    def number(
        self,
        message: Message,
        path: str,
        default: float,
        low: float = -math.inf,
        high: float = math.inf,
        *,
        above: bool = False,
    ) -> float:
        """Returns the field at the end of `path`, or the default if it is absent or wrong (which is noted).

        It must be low to high; `above`: low itself is not allowed. NaN and infinity never are.
        """
        name = path.rpartition(".")[2]
        if not message.HasField(name):
            return default
        value: float = getattr(message, name)
        if math.isfinite(value) and (low < value if above else low <= value) and value <= high:
            return value
        if high == math.inf:
            allowed = f"a finite number above {low:g}" if above else f"a finite number of at least {low:g}"
        else:
            allowed = f"above {low:g}, to {high:g}" if above else f"{low:g} to {high:g}"
        self.add(path, f"must be {allowed}; got {value:g}")
        return default

    def integer(self, message: Message, path: str, default: int, low: int, high: int) -> int:
        """Returns the field, checked in the way of `number`."""
        return int(self.number(message, path, default, low, high))

    def optional_number(self, message: Message, path: str) -> float | None:
        """Returns the field, which must be above 0 (seconds); None: it is absent."""
        if not message.HasField(path.rpartition(".")[2]):
            return None
        return self.number(message, path, 0.0, 0.0, above=True)

    def token_ids(self, path: str, ids: Sequence[int], vocab_size: int) -> None:
        """Notes one violation, for the first id that is outside the vocabulary."""
        if max(ids, default=0) < vocab_size:
            return
        for position, token in enumerate(ids):
            if token >= vocab_size:
                self.add(path, f"entry {position} is {token}; the vocabulary has {vocab_size} tokens, from 0")
                return


@dataclass(frozen=True, slots=True)
class CheckedGeneration:
    """A Generation without a fault, apart from what the length of its prompt may bring."""

    request_id: str
    sampling: SamplingParams
    samples: int
    max_tokens: int | None
    min_tokens: int
    stop_token_ids: frozenset[int]
    time_limit_s: float | None
    priority: int
    slo: Slo
    stops: tuple[str, ...]
    include_stop: bool
    text: bool
    token_ids: bool
    timings: bool

    def output_options(self) -> OutputOptions:
        stops = StopStrings(self.stops) if self.stops else None
        return OutputOptions(self.text, self.token_ids, stops, self.include_stop, self.min_tokens)

    def request(self, prompt: Sequence[int], field: str, model: ServedModel, deadline_s: float | None) -> Request:
        """Returns the request with its prompt, which came from `field` ("text").

        Raises PromptTooLong and InvalidRequest.
        """
        if not prompt:
            raise InvalidRequest.of(field, "must give at least one token")
        left = model.max_context - len(prompt)
        if left < 1:
            raise PromptTooLong(len(prompt), model.max_context)
        wrong = Violations()
        # A tokenizer may know more tokens than the model has rows for.
        wrong.token_ids(field, prompt, model.vocab_size)
        max_tokens = left if self.max_tokens is None else self.max_tokens
        if max_tokens > left:
            wrong.add(
                "stopping.max_tokens",
                f"{len(prompt)} tokens of prompt and {max_tokens} to come exceed the context of {model.max_context}",
            )
        if self.max_tokens is None and self.min_tokens > left:
            wrong.add("stopping.min_tokens", f"{left} tokens are left of the context; got {self.min_tokens}")
        wrong.raise_if_any()
        return Request(
            request_id=self.request_id,
            prompt=tuple(prompt),
            sampling=self.sampling,
            stopping=StoppingParams(max_tokens, self.min_tokens, self.stop_token_ids),
            samples=self.samples,
            priority=self.priority,
            slo=self.slo,
            deadline_s=deadline_s,
            time_limit_s=self.time_limit_s,
        )


def check_model(asked: Message, model: ServedModel) -> None:
    """Checks the field `model`, which is optional in `asked`. Raises NotFound."""
    if asked.HasField("model") and asked.model != model.name:  # type: ignore[attr-defined]
        name = asked.model[:SHOWN_NAME]  # type: ignore[attr-defined]
        raise NotFound(f"no model is named {name!r}; this server has {model.name!r}")


def check_input(kind: str | None, features: CheckpointFeatures) -> None:
    """Raises Unsupported if the checkpoint lacks what an input of this kind needs."""
    if kind == "text" and not features.text:
        raise Unsupported("the checkpoint has no tokenizer: send token_ids")
    if kind == "chat" and not (features.text and features.chat):
        raise Unsupported("the checkpoint has no chat template: send text or token_ids")


def refuse_unknown_fields(message: Message) -> None:
    """Raises Unsupported if a newer client has set a field that this server does not know; it is not ignored.

    `message` is without such fields afterwards. Sizes are compared, because reading unknown fields one by one would let
    a client that sends a million of them hold the others up.
    """
    parts = {field.name: part for field, part in message.ListFields() if isinstance(part, Message)}
    whole, sizes = message.ByteSize(), {name: part.ByteSize() for name, part in parts.items()}
    message.DiscardUnknownFields()
    if message.ByteSize() == whole:
        return
    where = next((name for name, part in parts.items() if part.ByteSize() != sizes[name]), "the request")
    raise Unsupported(f"{where} has a field unknown to this server")


def check(generation: pb.Generation, model: ServedModel, features: CheckpointFeatures) -> CheckedGeneration:
    """Checks everything that does not depend on the prompt's length. Raises NotFound, Unsupported or InvalidRequest."""
    check_model(generation, model)
    refuse_unknown_fields(generation)
    kind = generation.WhichOneof("input")
    check_input(kind, features)
    stopping, response, scheduling = generation.stopping, generation.response, generation.scheduling
    if not features.text and (stopping.stop or (response.HasField("text") and response.text)):
        raise Unsupported("the checkpoint has no tokenizer: neither text nor stop strings can be had")
    wrong = Violations()
    request_id = generation.request_id if generation.HasField("request_id") else secrets.token_hex(12)
    if not REQUEST_ID.fullmatch(request_id):
        wrong.add("request_id", "must be 1 to 128 characters of [A-Za-z0-9._:-]")
    _check_prompt(generation, kind, model, wrong)
    sampling, samples = _sampling(generation.sampling, response, model, wrong)
    stops = _stop_strings(stopping, wrong)
    if _few("stopping.stop_token_ids", stopping.stop_token_ids, MAX_STOP_TOKEN_IDS, wrong):
        wrong.token_ids("stopping.stop_token_ids", stopping.stop_token_ids, model.vocab_size)
    max_tokens = (
        wrong.integer(stopping, "stopping.max_tokens", 1, 1, MAX_UINT31) if stopping.HasField("max_tokens") else None
    )
    min_tokens = wrong.integer(stopping, "stopping.min_tokens", 0, 0, MAX_UINT31)
    if max_tokens is not None and min_tokens > max_tokens:
        wrong.add("stopping.min_tokens", f"must not exceed max_tokens ({max_tokens}); got {min_tokens}")
    eos = () if stopping.ignore_eos else model.eos_token_ids
    checked = CheckedGeneration(
        request_id=request_id,
        sampling=sampling,
        samples=samples,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop_token_ids=frozenset((*eos, *stopping.stop_token_ids)),
        time_limit_s=wrong.optional_number(stopping, "stopping.time_limit"),
        priority=wrong.integer(scheduling, "scheduling.priority", 0, -MAX_PRIORITY, MAX_PRIORITY),
        slo=Slo(
            wrong.optional_number(scheduling, "scheduling.ttft_slo"),
            wrong.optional_number(scheduling, "scheduling.tpot_slo"),
        ),
        stops=stops,
        include_stop=stopping.include_stop,
        text=features.text and (response.text or not response.HasField("text")),
        token_ids=response.token_ids or not response.HasField("token_ids"),
        timings=response.timings or not response.HasField("timings"),
    )
    wrong.raise_if_any()
    return checked


def _check_prompt(generation: pb.Generation, kind: str | None, model: ServedModel, wrong: Violations) -> None:
    match kind:
        case None:
            wrong.add("input", "one of text, token_ids and chat must be set")
        case "text" if not generation.text:
            wrong.add("text", "must not be empty")
        case "token_ids" if not generation.token_ids.ids:
            wrong.add("token_ids.ids", "must not be empty")
        case "token_ids" if len(generation.token_ids.ids) >= model.max_context:
            raise PromptTooLong(len(generation.token_ids.ids), model.max_context)
        case "token_ids":
            wrong.token_ids("token_ids.ids", generation.token_ids.ids, model.vocab_size)
        case "chat":
            check_messages(generation.chat, wrong)


def check_messages(chat: pb.Chat, wrong: Violations) -> None:
    if not chat.messages:
        wrong.add("chat.messages", "must not be empty")
    if not _few("chat.messages", chat.messages, MAX_MESSAGES, wrong):
        return
    for n, message in enumerate(chat.messages):
        if not message.role:
            wrong.add(f"chat.messages[{n}].role", "must not be empty")
            return


def _sampling(
    sampling: pb.SamplingParams, response: pb.ResponseParams, model: ServedModel, wrong: Violations
) -> tuple[SamplingParams, int]:
    """Returns the parameters, and the number of samples."""
    top_logprobs = wrong.integer(response, "response.top_logprobs", 0, 0, MAX_TOP_LOGPROBS)
    if top_logprobs and not response.logprobs:
        wrong.add("response.top_logprobs", "needs response.logprobs")
    params = SamplingParams(
        temperature=wrong.number(sampling, "sampling.temperature", 1.0, 0.0, 2.0),
        top_p=wrong.number(sampling, "sampling.top_p", 1.0, 0.0, 1.0, above=True),
        top_k=wrong.integer(sampling, "sampling.top_k", 0, 0, MAX_UINT31),
        min_p=wrong.number(sampling, "sampling.min_p", 0.0, 0.0, 1.0),
        frequency_penalty=wrong.number(sampling, "sampling.frequency_penalty", 0.0, -2.0, 2.0),
        presence_penalty=wrong.number(sampling, "sampling.presence_penalty", 0.0, -2.0, 2.0),
        repetition_penalty=wrong.number(sampling, "sampling.repetition_penalty", 1.0, 0.0, 10.0, above=True),
        seed=sampling.seed if sampling.HasField("seed") else random.getrandbits(64),
        logit_bias=_logit_bias(sampling, model, wrong),
        logprobs=response.logprobs,
        top_logprobs=top_logprobs,
    )
    return params, wrong.integer(sampling, "sampling.n", 1, 1, MAX_SAMPLES)


def _logit_bias(sampling: pb.SamplingParams, model: ServedModel, wrong: Violations) -> dict[int, float]:
    if not _few("sampling.logit_bias", sampling.logit_bias, MAX_LOGIT_BIAS, wrong):
        return {}
    for token, bias in sampling.logit_bias.items():
        if token >= model.vocab_size:
            wrong.add("sampling.logit_bias", f"token {token} is outside the vocabulary of {model.vocab_size}")
            break
        if not -100.0 <= bias <= 100.0:
            wrong.add("sampling.logit_bias", f"must be -100 to 100; token {token} has {bias:g}")
            break
    return dict(sampling.logit_bias)


def _stop_strings(stopping: pb.StoppingParams, wrong: Violations) -> tuple[str, ...]:
    if not _few("stopping.stop", stopping.stop, MAX_STOP_STRINGS, wrong):
        return ()
    stops = tuple(stopping.stop)
    for n, stop in enumerate(stops):
        if not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
            wrong.add("stopping.stop", f"must have 1 to {MAX_STOP_CHARACTERS} characters; entry {n} has {len(stop)}")
            break
    return stops


def _few(path: str, values: Sized, most: int, wrong: Violations) -> bool:
    """Returns True if there are few enough to look at each; otherwise it notes a violation."""
    if len(values) <= most:
        return True
    wrong.add(path, f"must have at most {most} entries; got {len(values)}")
    return False
