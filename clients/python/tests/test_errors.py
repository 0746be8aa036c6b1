from __future__ import annotations

from typing import Any

import grpc
import pytest
from fake_server import FakeServer, refuse, silent
from google.protobuf.message import Message

import semipd_client as sc
from semipd_client import Client
from semipd_client.errors import read_details

TREE = [
    ("INVALID_ARGUMENT", "PROMPT_TOO_LONG", sc.InvalidArgument),
    ("NOT_FOUND", "MODEL_NOT_FOUND", sc.NotFound),
    ("UNIMPLEMENTED", "FEATURE_UNSUPPORTED", sc.Unsupported),
    ("ALREADY_EXISTS", "DUPLICATE_REQUEST", sc.AlreadyExists),
    ("RESOURCE_EXHAUSTED", "QUEUE_FULL", sc.QueueFull),
    ("RESOURCE_EXHAUSTED", "DEADLINE_UNMEETABLE", sc.DeadlineUnmeetable),
    ("RESOURCE_EXHAUSTED", "SOMETHING_NEW", sc.ResourceExhausted),
    ("DEADLINE_EXCEEDED", "EXPIRED_IN_QUEUE", sc.DeadlineExceeded),
    ("CANCELLED", "CANCELLED_BY_CLIENT", sc.Cancelled),
    ("ABORTED", "ABORTED_BY_OPERATOR", sc.Aborted),
    ("UNAVAILABLE", "DRAINING", sc.Unavailable),
    ("UNAUTHENTICATED", "UNAUTHENTICATED", sc.Unauthenticated),
    ("PERMISSION_DENIED", "PERMISSION_DENIED", sc.PermissionDenied),
    ("INTERNAL", "INTERNAL", sc.Internal),
    ("DATA_LOSS", "SOMETHING_NEW", sc.SemipdClientError),
]


@pytest.mark.parametrize(("code", "reason", "cls"), TREE)
def test_a_status_and_its_reason_become_a_typed_error(
    server: FakeServer, client: Client, code: str, reason: str, cls: type[sc.SemipdClientError]
) -> None:
    status = grpc.StatusCode[code]
    server.answer = lambda q, c: refuse(c, status, reason, metadata={"request_id": "r1"})
    with pytest.raises(sc.SemipdClientError) as caught:
        client.generate("p")
    error = caught.value
    assert type(error) is cls
    assert (error.code, error.reason, error.message) == (status, reason, f"refused: {reason}")
    assert error.metadata == {"request_id": "r1"}


def test_violations_name_fields(server: FakeServer, client: Client) -> None:
    server.answer = lambda q, c: refuse(
        c, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", violations={"sampling.top_p": "0 to 1"}
    )
    with pytest.raises(sc.InvalidArgument) as caught:
        client.generate("p", top_p=7)
    assert caught.value.violations == (sc.FieldViolation("sampling.top_p", "0 to 1"),)


def test_a_refusal_says_when_to_try_again(server: FakeServer, client: Client) -> None:
    server.answer = lambda q, c: refuse(c, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after_s=3)
    with pytest.raises(sc.QueueFull) as caught:
        client.generate("p")
    assert caught.value.retry_after_s == 3.0


def test_the_pushback_header_stands_in_for_retry_info() -> None:
    assert read_details([("grpc-retry-pushback-ms", "1500")]).retry_after_s == 1.5
    assert read_details([("grpc-retry-pushback-ms", "-1")]).retry_after_s is None


def test_garbled_details_lose_neither_status_nor_message(server: FakeServer, client: Client) -> None:
    def garbled(_question: object, context: grpc.ServicerContext) -> Message:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "no model of that name")

    server.answer = garbled
    with pytest.raises(sc.NotFound, match="no model of that name") as caught:
        client.generate("p")
    assert caught.value.reason == ""


def test_nobody_there_is_unavailable_without_a_reason() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(sc.Unavailable) as caught:
        client.generate("p")
    assert caught.value.reason == ""


def test_the_deadline_of_a_whole_answer(server: FakeServer, client: Client) -> None:
    def late(question: Any, context: grpc.ServicerContext) -> Message:
        """Waits until the client is gone."""
        first, *_ = silent(question, context)
        return first

    server.answer = late
    with pytest.raises(sc.DeadlineExceeded):
        client.generate("p", timeout=0.2)
