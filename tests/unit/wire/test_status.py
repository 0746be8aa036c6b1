"""Each error has one code and one ErrorInfo."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from semipd.core.errors import (
    FieldViolation,
    InternalError,
    InvalidRequest,
    PromptTooLong,
    QueueFull,
    Reason,
    RequestError,
)
from semipd.wire.status import CODES, code_of, pushback, status_of


def details(status: status_pb2.Status, kind: type[Any]) -> list[Any]:
    """Returns the details of that kind, a message of google.rpc (whose modules have no types)."""
    found: list[Any] = []
    for detail in status.details:
        if detail.Is(kind.DESCRIPTOR):
            found.append(kind())
            detail.Unpack(found[-1])
    return found


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_code_and_one_error_info(reason: Reason) -> None:
    error = RequestError("it went wrong", reason=reason)
    status = status_of(error, {"request_id": "r-1"})
    assert status.code == code_of(error) == CODES[reason] != code_pb2.OK
    assert status.message == "it went wrong"
    [info] = details(status, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, dict(info.metadata)) == (reason.value, "semipd", {"request_id": "r-1"})


def test_violations_become_a_bad_request() -> None:
    status = status_of(InvalidRequest([FieldViolation("sampling.n", "1 to 16"), FieldViolation("text", "must be set")]))
    [bad] = details(status, error_details_pb2.BadRequest)
    assert [(v.field, v.description) for v in bad.field_violations] == [
        ("sampling.n", "1 to 16"),
        ("text", "must be set"),
    ]


def test_both_numbers_of_a_prompt_too_long_are_there_for_programs() -> None:
    [info] = details(status_of(PromptTooLong(200, 128)), error_details_pb2.ErrorInfo)
    assert dict(info.metadata) == {"prompt_tokens": "200", "max_context": "128"}


@pytest.mark.parametrize(("retry_after_s", "ms"), [(2.5, 2500), (None, 1000), (0.0, 1)])
def test_a_full_queue_says_when_to_come_again(retry_after_s: float | None, ms: int) -> None:
    error = QueueFull("full", retry_after_s=retry_after_s)
    [retry] = details(status_of(error), error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == ms
    assert pushback(error) == (("grpc-retry-pushback-ms", str(ms)),)


def test_a_bug_asks_for_no_delay() -> None:
    assert details(status_of(InternalError("bug")), error_details_pb2.RetryInfo) == []
    assert pushback(InternalError("bug")) == ()


def test_any_error_fits_into_trailers() -> None:
    """Clients refuse trailers beyond 8 KiB: the details in base 64, and the message once more, percent-encoded."""
    violations = [FieldViolation(f"chat.messages[{n}].role" * 20, "must not be empty " * 100) for n in range(5000)]
    status = status_of(InvalidRequest(violations))
    assert len(base64.b64encode(status.SerializeToString())) + len(quote(status.message)) < 8000
