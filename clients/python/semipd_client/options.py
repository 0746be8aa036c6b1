"""The keyword arguments of `generate` and `stream`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias, TypedDict, cast

from semipd_client._proto.semipd.v1 import generation_pb2 as pb
from semipd_client.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat. `role` is "system", "user", "assistant" or what else the model's template knows."""

    role: str
    content: str


Prompt: TypeAlias = str | Sequence[int] | Sequence[Message | Mapping[str, str]]
"""Text to go on from, token ids, or a chat (messages, or mappings with "role" and "content")."""


class Options(TypedDict, total=False):
    """The options of a generation. An absent one, or None, takes the server's default; zero and empty are values.

    The server checks the ranges and refuses what it doesn't support; a name that isn't here is a TypeError.
    """

    request_id: str | None
    """1 to 128 characters of [A-Za-z0-9._:-]; the server makes one if it is absent."""
    model: str | None
    """Name of the model; the only model if absent."""

    temperature: float | None
    """0 (greedy) to 2. Server's default: 1."""
    top_p: float | None
    top_k: int | None
    min_p: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    repetition_penalty: float | None
    seed: int | None
    """Gives the same tokens alone and in any batch."""
    n: int | None
    """Samples of the same prompt."""
    logit_bias: Mapping[int, float] | None
    """Numbers that are added to the logits of tokens, by token id."""

    max_tokens: int | None
    """Server's default: what is left of the context."""
    min_tokens: int | None
    stop: str | Sequence[str] | None
    """The answer ends before the first of these strings that appears."""
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    include_stop: bool | None
    time_limit: float | None
    """Seconds of generation after which the answer ends as it is, without an error."""

    text: bool | None
    """False: token ids alone."""
    token_ids: bool | None
    """False: text alone."""
    logprobs: bool | None
    top_logprobs: int | None
    timings: bool | None

    priority: int | None
    """Higher goes first."""
    ttft_slo: float | None
    """Seconds to the first token that you want to see."""
    tpot_slo: float | None
    """Seconds a token after the first that you want to see."""


_PARTS: Mapping[str, type[Any]] = {
    "sampling": pb.SamplingParams,
    "stopping": pb.StoppingParams,
    "response": pb.ResponseParams,
    "scheduling": pb.SchedulingParams,
}
_PART_OF = {field.name: part for part, cls in _PARTS.items() for field in cls.DESCRIPTOR.fields}


def generation_from(prompt: Prompt, options: Options) -> pb.Generation:
    """Makes the message. Raises TypeError for an option that isn't there or has a wrong type, and InvalidArgument for a
    value that can't be sent."""
    generation = pb.Generation()
    _fill_prompt(generation, prompt)
    unknown = sorted(set(options) - set(Options.__annotations__))
    if unknown:
        raise TypeError(f"no such option: {', '.join(unknown)}")
    for name, value in cast("dict[str, Any]", options).items():
        if value is None:
            continue
        part = _PART_OF.get(name)
        target: Any = generation if part is None else getattr(generation, part)
        path = name if part is None else f"{part}.{name}"
        try:
            _set(target, name, [value] if name == "stop" and isinstance(value, str) else value)
        except TypeError as error:
            raise TypeError(f"{path}: {error}") from error
        except (ValueError, OverflowError) as error:
            raise InvalidArgument.of(path, "is out of range, or not valid Unicode") from error
    return generation


def _set(target: Any, name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        getattr(target, name).update(value)
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        getattr(target, name).extend(value)
    else:
        setattr(target, name, value)


def _fill_prompt(generation: pb.Generation, prompt: Prompt) -> None:
    try:
        if isinstance(prompt, str):
            generation.text = prompt
        elif chat := messages_of(prompt):
            generation.chat.messages.extend(chat)
        else:
            generation.token_ids.ids.extend(cast("Sequence[int]", prompt))
            generation.token_ids.SetInParent()
    except (ValueError, OverflowError):
        # Without the cause: what protobuf says may quote the prompt.
        what = "text" if isinstance(prompt, str) else "prompt"
        raise InvalidArgument.of(what, "is not valid Unicode, or has token ids out of range") from None


def messages_of(prompt: Sequence[int] | Sequence[Message | Mapping[str, str]]) -> list[pb.ChatMessage]:
    """Returns the messages of a chat; none for token ids. Raises TypeError if it is neither."""
    if isinstance(prompt, bytes | bytearray) or not isinstance(prompt, Iterable):
        raise TypeError(f"a prompt is text, token ids or messages, not {type(prompt).__name__}")
    turns = list(prompt)
    if all(isinstance(turn, Integral) for turn in turns):
        return []
    return [_message(turn) for turn in turns]


def _message(turn: object) -> pb.ChatMessage:
    if isinstance(turn, Message):
        return pb.ChatMessage(role=turn.role, content=turn.content)
    if isinstance(turn, Mapping) and set(turn) == {"role", "content"}:
        return pb.ChatMessage(role=turn["role"], content=turn["content"])
    raise TypeError("a message is a Message, or a mapping with role and content")
