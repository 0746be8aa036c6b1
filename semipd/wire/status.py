"""Turns errors into a gRPC status code and google.rpc.Status, with exactly one ErrorInfo. It needs no grpc."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from semipd.core.errors import InvalidRequest, PromptTooLong, Reason, RequestError

DOMAIN = "semipd"

CODES: Mapping[Reason, int] = {
    Reason.INVALID_ARGUMENT: code_pb2.INVALID_ARGUMENT,
    Reason.PROMPT_TOO_LONG: code_pb2.INVALID_ARGUMENT,
    Reason.MODEL_NOT_FOUND: code_pb2.NOT_FOUND,
    Reason.POLICY_NOT_FOUND: code_pb2.NOT_FOUND,
    Reason.FEATURE_UNSUPPORTED: code_pb2.UNIMPLEMENTED,
    Reason.DUPLICATE_REQUEST: code_pb2.ALREADY_EXISTS,
    Reason.QUEUE_FULL: code_pb2.RESOURCE_EXHAUSTED,
    Reason.DEADLINE_UNMEETABLE: code_pb2.RESOURCE_EXHAUSTED,
    Reason.EXPIRED_IN_QUEUE: code_pb2.DEADLINE_EXCEEDED,
    Reason.EXPIRED_RUNNING: code_pb2.DEADLINE_EXCEEDED,
    Reason.CANCELLED_BY_CLIENT: code_pb2.CANCELLED,
    Reason.ABORTED_BY_OPERATOR: code_pb2.ABORTED,
    Reason.WORKER_LOST: code_pb2.UNAVAILABLE,
    Reason.DRAINING: code_pb2.UNAVAILABLE,
    Reason.NOT_READY: code_pb2.UNAVAILABLE,
    Reason.UNAUTHENTICATED: code_pb2.UNAUTHENTICATED,
    Reason.PERMISSION_DENIED: code_pb2.PERMISSION_DENIED,
    Reason.INTERNAL: code_pb2.INTERNAL,
}
"""One code for each Reason, as google.rpc.Code and gRPC number them."""

RETRY_S: Mapping[Reason, float] = {Reason.QUEUE_FULL: 1.0, Reason.DEADLINE_UNMEETABLE: 1.0}
"""Seconds that a client is told to wait where the error itself doesn't say."""

MAX_MESSAGE = 400
MAX_VIOLATIONS = 20
MAX_FIELD = 64
MAX_DESCRIPTION = 160
"""Limits in bytes and entries. Clients refuse trailers of more than 8 KiB in all, with the details in base 64."""


def code_of(error: RequestError) -> int:
    """Returns the google.rpc.Code of the error."""
    return CODES[error.reason]


def status_of(error: RequestError, metadata: Mapping[str, str] | None = None) -> status_pb2.Status:
    """Returns the value of grpc-status-details-bin. `metadata` joins the ErrorInfo's (the request's id, for one)."""
    info = error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=dict(metadata or {}))
    if isinstance(error, PromptTooLong):
        info.metadata["prompt_tokens"] = str(error.prompt_tokens)
        info.metadata["max_context"] = str(error.max_context)
    details: list[Message] = [info]
    if isinstance(error, InvalidRequest):
        details.append(_bad_request(error))
    retry_s = _retry_s(error)
    if retry_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(_ms(retry_s))
        details.append(retry)
    status = status_pb2.Status(code=code_of(error), message=_shortened(error.message, MAX_MESSAGE))
    for detail in details:
        status.details.add().Pack(detail)
    return status


def pushback(error: RequestError) -> tuple[tuple[str, str], ...]:
    """Returns trailing metadata that tells gRPC's own retries how long to wait; empty: they may do as they like."""
    retry_s = _retry_s(error)
    return () if retry_s is None else (("grpc-retry-pushback-ms", str(_ms(retry_s))),)


def _retry_s(error: RequestError) -> float | None:
    return error.retry_after_s if error.retry_after_s is not None else RETRY_S.get(error.reason)


def _ms(seconds: float) -> int:
    return max(1, round(min(seconds, 86_400.0) * 1000))


def _bad_request(error: InvalidRequest) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for violation in error.violations[:MAX_VIOLATIONS]:
        bad.field_violations.add(
            field=_shortened(violation.field, MAX_FIELD),
            description=_shortened(violation.description, MAX_DESCRIPTION),
        )
    return bad


def _shortened(text: str, most: int) -> str:
    """Returns `text`, cut to at most `most` bytes of UTF-8."""
    encoded = text.encode()
    return text if len(encoded) <= most else encoded[: most - 3].decode(errors="ignore") + "..."
