"""The errors that a call can raise.

    SemipdClientError
    ├── InvalidArgument         .violations: which fields, and what is allowed
    ├── NotFound                model or policy
    ├── Unsupported             a feature that this server hasn't
    ├── AlreadyExists           a live request has this id
    ├── ResourceExhausted       .retry_after_s
    │   ├── QueueFull
    │   └── DeadlineUnmeetable
    ├── DeadlineExceeded        the timeout passed
    ├── Cancelled               by this client
    ├── Aborted                 by an operator, or by `abort`
    ├── Unavailable             nobody listens, draining, not ready, or a worker lost for good
    ├── Unauthenticated
    ├── PermissionDenied
    └── Internal                a bug, in the server or between it and here

An error with another status is a plain SemipdClientError with that `code`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import grpc
from google.protobuf.message import DecodeError

from semipd_client._proto.semipd.client.v1 import status_pb2

DETAILS = "grpc-status-details-bin"
PUSHBACK = "grpc-retry-pushback-ms"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One bad argument: its path as the API names it ("sampling.temperature"), and what is allowed."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """The details of an error that a server gives besides status and message."""

    reason: str = ""
    """The cause, for programs: "QUEUE_FULL", "PROMPT_TOO_LONG", "DRAINING"... Empty if no semipd server answered."""
    metadata: Mapping[str, str] | None = None
    """Values that belong to the reason: "request_id", "prompt_tokens", "max_context"..."""
    violations: tuple[FieldViolation, ...] = ()
    retry_after_s: float | None = None


class SemipdClientError(Exception):
    """Root of the tree above. `str(error)` is the message; it holds no prompt and no output."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(
        self, message: str, *, code: grpc.StatusCode | None = None, details: ErrorDetails | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        details = details or ErrorDetails()
        self.reason = details.reason
        self.metadata: Mapping[str, str] = dict(details.metadata or {})
        self.retry_after_s = details.retry_after_s
        """Seconds after which the server thinks that another try may succeed; None: it didn't say."""
        self.violations = details.violations


class InvalidArgument(SemipdClientError):
    """Bad arguments; `violations` has one entry a field."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    @classmethod
    def of(cls, field: str, description: str) -> InvalidArgument:
        """Makes the error for an argument that is refused here, before anything is sent."""
        violation = FieldViolation(field, description)
        details = ErrorDetails(reason="INVALID_ARGUMENT", violations=(violation,))
        return cls(f"{field}: {description}", details=details)


class NotFound(SemipdClientError):
    code = grpc.StatusCode.NOT_FOUND


class Unsupported(SemipdClientError):
    code = grpc.StatusCode.UNIMPLEMENTED


class AlreadyExists(SemipdClientError):
    code = grpc.StatusCode.ALREADY_EXISTS


class ResourceExhausted(SemipdClientError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class QueueFull(ResourceExhausted):
    """The server's queue is full: try again after `retry_after_s`."""


class DeadlineUnmeetable(ResourceExhausted):
    """The server can't keep the deadline or SLO that was asked for."""


class DeadlineExceeded(SemipdClientError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(SemipdClientError):
    code = grpc.StatusCode.CANCELLED


class Aborted(SemipdClientError):
    code = grpc.StatusCode.ABORTED


class Unavailable(SemipdClientError):
    """The server cannot answer. `reason` is empty if nobody listens at the address or the connection broke."""

    code = grpc.StatusCode.UNAVAILABLE


class Unauthenticated(SemipdClientError):
    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(SemipdClientError):
    code = grpc.StatusCode.PERMISSION_DENIED


class Internal(SemipdClientError):
    code = grpc.StatusCode.INTERNAL


_BY_CODE: Mapping[grpc.StatusCode, type[SemipdClientError]] = {
    cls.code: cls
    for cls in (
        InvalidArgument,
        NotFound,
        Unsupported,
        AlreadyExists,
        ResourceExhausted,
        DeadlineExceeded,
        Cancelled,
        Aborted,
        Unavailable,
        Unauthenticated,
        PermissionDenied,
        Internal,
    )
}

_BY_REASON: Mapping[str, type[ResourceExhausted]] = {
    "QUEUE_FULL": QueueFull,
    "DEADLINE_UNMEETABLE": DeadlineUnmeetable,
}


def error_of(failed: grpc.RpcError) -> SemipdClientError:
    """Returns the typed error for what grpc or grpc.aio raised."""
    code = failed.code()
    # Sync calls have tuples of pairs there, aio calls a Metadata that iterates over pairs.
    trailers = cast("Iterable[tuple[str, str | bytes]]", failed.trailing_metadata() or ())
    details = read_details(list(trailers))
    cls = _BY_CODE.get(code, SemipdClientError)
    if cls is ResourceExhausted:
        cls = _BY_REASON.get(details.reason, cls)
    return cls(failed.details() or code.value[1], code=code, details=details)


def read_details(trailers: Sequence[tuple[str, str | bytes]]) -> ErrorDetails:
    """Reads google.rpc.Status from trailing metadata. What is missing, unknown or garbled is left out."""
    found = {key: value for key, value in trailers if key in (DETAILS, PUSHBACK)}
    reason, metadata = "", {}
    violations: tuple[FieldViolation, ...] = ()
    retry_after_s = _pushback_s(found.get(PUSHBACK))
    status = status_pb2.Status()
    packed = found.get(DETAILS)
    try:
        status.ParseFromString(packed if isinstance(packed, bytes) else b"")
        for detail in status.details:
            match detail.type_url.rpartition("/")[2]:
                case "google.rpc.ErrorInfo":
                    info = status_pb2.ErrorInfo.FromString(detail.value)
                    reason, metadata = info.reason, dict(info.metadata)
                case "google.rpc.BadRequest":
                    bad = status_pb2.BadRequest.FromString(detail.value)
                    violations = tuple(FieldViolation(v.field, v.description) for v in bad.field_violations)
                case "google.rpc.RetryInfo":
                    delay = status_pb2.RetryInfo.FromString(detail.value).retry_delay
                    retry_after_s = delay.seconds + delay.nanos / 1e9
    except DecodeError:
        # The status code and the message still stand; whoever garbled the rest isn't worth losing them.
        pass
    return ErrorDetails(reason, metadata, violations, retry_after_s)


def _pushback_s(value: str | bytes | None) -> float | None:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value or ""
    return int(text) / 1000 if text.isascii() and text.isdigit() else None


def not_ready(target: str, waited_s: float, answered: bool) -> Unavailable:
    """Returns the error of `wait_ready`. `answered`: the server answered, and said that it doesn't serve."""
    if answered:
        details = ErrorDetails(reason="NOT_READY")
        return Unavailable(f"the server at {target} is not serving after {waited_s:g} s", details=details)
    return Unavailable(f"nobody answers at {target} after {waited_s:g} s")
