"""Everything that can go wrong by design.

    SemipdError
    ├── RequestError            one request ends with it; carries a Reason that reaches the client
    │   ├── InvalidRequest      bad arguments, each named by its field
    │   ├── PromptTooLong
    │   ├── NotFound            model, policy or request that is not there
    │   ├── Unsupported
    │   ├── DuplicateRequest
    │   ├── QueueFull
    │   ├── DeadlineUnmeetable
    │   ├── Expired
    │   ├── Cancelled
    │   ├── Unavailable         worker lost, draining, starting
    │   ├── NotAuthenticated
    │   ├── NotPermitted
    │   └── InternalError       a bug or a sequence that its engine cannot compute
    └── StartError              the server cannot start; for the person at the terminal
        ├── ConfigError         an option or its value
        └── CheckpointError     the model directory, by the name of the field or tensor

A RequestError's message may reach clients and logs: it never holds prompt or output text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """The machine-readable cause of an error (google.rpc.ErrorInfo.reason). Part of the public API."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    POLICY_NOT_FOUND = "POLICY_NOT_FOUND"
    FEATURE_UNSUPPORTED = "FEATURE_UNSUPPORTED"
    DUPLICATE_REQUEST = "DUPLICATE_REQUEST"
    QUEUE_FULL = "QUEUE_FULL"
    DEADLINE_UNMEETABLE = "DEADLINE_UNMEETABLE"
    EXPIRED_IN_QUEUE = "EXPIRED_IN_QUEUE"
    EXPIRED_RUNNING = "EXPIRED_RUNNING"
    CANCELLED_BY_CLIENT = "CANCELLED_BY_CLIENT"
    ABORTED_BY_OPERATOR = "ABORTED_BY_OPERATOR"
    WORKER_LOST = "WORKER_LOST"
    DRAINING = "DRAINING"
    NOT_READY = "NOT_READY"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    INTERNAL = "INTERNAL"


class SemipdError(Exception):
    """Root of the tree above."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One bad argument: the field's path as the API names it, and what is allowed."""

    field: str
    description: str


class RequestError(SemipdError):
    """Ends one request. `reason` says why to programs, the message to people."""

    reason: Reason = Reason.INTERNAL

    def __init__(self, message: str, *, reason: Reason | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason
        self.retry_after_s = retry_after_s


class InvalidRequest(RequestError):
    """Bad arguments; `violations` has one entry a field."""

    reason = Reason.INVALID_ARGUMENT

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in self.violations))

    @classmethod
    def of(cls, field: str, description: str) -> InvalidRequest:
        return cls([FieldViolation(field, description)])


class PromptTooLong(RequestError):
    reason = Reason.PROMPT_TOO_LONG

    def __init__(self, prompt_tokens: int, max_context: int) -> None:
        super().__init__(
            f"the prompt has {prompt_tokens} tokens; with at least one token of output, "
            f"{max_context - 1} fit the context of {max_context}"
        )
        self.prompt_tokens = prompt_tokens
        self.max_context = max_context


class NotFound(RequestError):
    reason = Reason.MODEL_NOT_FOUND


class Unsupported(RequestError):
    reason = Reason.FEATURE_UNSUPPORTED


class DuplicateRequest(RequestError):
    reason = Reason.DUPLICATE_REQUEST


class QueueFull(RequestError):
    reason = Reason.QUEUE_FULL


class DeadlineUnmeetable(RequestError):
    reason = Reason.DEADLINE_UNMEETABLE


class Expired(RequestError):
    """The client's deadline passed; EXPIRED_IN_QUEUE or EXPIRED_RUNNING."""

    reason = Reason.EXPIRED_RUNNING


class Cancelled(RequestError):
    """By the client or by an operator; CANCELLED_BY_CLIENT or ABORTED_BY_OPERATOR."""

    reason = Reason.CANCELLED_BY_CLIENT


class Unavailable(RequestError):
    """WORKER_LOST, DRAINING or NOT_READY."""

    reason = Reason.WORKER_LOST


class NotAuthenticated(RequestError):
    reason = Reason.UNAUTHENTICATED


class NotPermitted(RequestError):
    reason = Reason.PERMISSION_DENIED


class InternalError(RequestError):
    reason = Reason.INTERNAL


class StartError(SemipdError):
    """The server cannot start. The message tells a person what to change."""


class ConfigError(StartError):
    """An option, or a combination of options, that cannot be."""


class CheckpointError(StartError):
    """A model directory that cannot be served; the message names the file and the field or tensor."""
