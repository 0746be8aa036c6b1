"""Makes the messages that both clients send, from plain arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from semipd_client._proto.semipd.v1 import admin_pb2, generation_pb2, tokenizer_pb2
from semipd_client.errors import InvalidArgument
from semipd_client.options import Message, messages_of


def tokenize(
    text: str | Sequence[Message | Mapping[str, str]], model: str | None, add_special_tokens: bool | None
) -> tokenizer_pb2.TokenizeRequest:
    request = tokenizer_pb2.TokenizeRequest(model=model, add_special_tokens=add_special_tokens)
    if isinstance(text, str):
        try:
            request.text = text
        except ValueError:
            raise InvalidArgument.of("text", "is not valid Unicode") from None
    else:
        request.chat.CopyFrom(generation_pb2.Chat(messages=messages_of(text)))
    return request


def detokenize(
    token_ids: Sequence[int], model: str | None, skip_special_tokens: bool | None
) -> tokenizer_pb2.DetokenizeRequest:
    try:
        return tokenizer_pb2.DetokenizeRequest(
            model=model, token_ids=token_ids, skip_special_tokens=skip_special_tokens
        )
    except (ValueError, OverflowError):
        raise InvalidArgument.of("token_ids", "must be 0 to 4294967295") from None


def set_policy(name: str, options: Mapping[str, str] | None) -> admin_pb2.SetPolicyRequest:
    return admin_pb2.SetPolicyRequest(name=name, options=options or {})


def set_partition(prefill: float, decode: float) -> admin_pb2.SetPartitionRequest:
    return admin_pb2.SetPartitionRequest(partition=admin_pb2.Partition(prefill=prefill, decode=decode))
