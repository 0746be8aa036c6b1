"""The errors that are part of the design.

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
    ├── StartError              the server cannot start; for the person at the terminal
    │   ├── ConfigError         an option or its value
    │   └── CheckpointError     the model directory, by the name of the field or tensor
    └── CommandError            a command ends without a result; each class has an exit code
        ├── InputError          2: an option or a file that cannot be used
        └── RunFailed           1: what was to be run or measured gave no result

A RequestError's message may reach clients and logs: it never holds prompt or output text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """The machine-readable cause of an error (google.rpc.ErrorInfo.reason). Part of the public API."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    """A field has a value that is not allowed; google.rpc.BadRequest names every such field."""
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    """Prompt and one token of output do not fit the context. The metadata has `prompt_tokens` and `max_context`."""
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    """The server has no model of the name that the request gives."""
    POLICY_NOT_FOUND = "POLICY_NOT_FOUND"
    """No policy of the name that SetPolicy gives is installed."""
    FEATURE_UNSUPPORTED = "FEATURE_UNSUPPORTED"
    """The server, or the checkpoint that it serves, cannot do what the request asks for."""
    DUPLICATE_REQUEST = "DUPLICATE_REQUEST"
    """A request with the same id is alive."""
    QUEUE_FULL = "QUEUE_FULL"
    """The queue holds as many sequences as it may. A retry may succeed after the time in google.rpc.RetryInfo."""
    DEADLINE_UNMEETABLE = "DEADLINE_UNMEETABLE"
    """The policy refused the request. A retry may succeed after the time in google.rpc.RetryInfo."""
    EXPIRED_IN_QUEUE = "EXPIRED_IN_QUEUE"
    """The client's deadline passed before a worker began the request."""
    EXPIRED_RUNNING = "EXPIRED_RUNNING"
    """The client's deadline passed before the answer was complete."""
    CANCELLED_BY_CLIENT = "CANCELLED_BY_CLIENT"
    """The client cancelled the request or went away."""
    ABORTED_BY_OPERATOR = "ABORTED_BY_OPERATOR"
    """Abort ended the request."""
    WORKER_LOST = "WORKER_LOST"
    """The process that held weights and KV is gone, or no worker starts. Try again when the server has started anew."""
    DRAINING = "DRAINING"
    """The server is shutting down and takes no new request."""
    NOT_READY = "NOT_READY"
    """The server is starting, or its coordinator does not answer."""
    UNAUTHENTICATED = "UNAUTHENTICATED"
    """The server wants an API key, and the request has none or an unknown one."""
    PERMISSION_DENIED = "PERMISSION_DENIED"
    """Reserved: no method needs more than a key today."""
    INTERNAL = "INTERNAL"
    """A bug, or a request that its engine cannot compute; the server's log has more."""


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
    """The client's deadline passed. The reason is EXPIRED_IN_QUEUE or EXPIRED_RUNNING."""

    reason = Reason.EXPIRED_RUNNING


class Cancelled(RequestError):
    """Somebody cancelled the request. The reason is CANCELLED_BY_CLIENT or ABORTED_BY_OPERATOR."""

    reason = Reason.CANCELLED_BY_CLIENT


class Unavailable(RequestError):
    """The server cannot answer now. The reason is WORKER_LOST, DRAINING or NOT_READY."""

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


class CommandError(SemipdError):
    """A benchmark, a simulation or a recording ends without a result. The message is for the person at the terminal."""

    exit_code = 1


class InputError(CommandError):
    """An option, a trace, a profile or a saved report that cannot be used; the message names it."""

    exit_code = 2


class RunFailed(CommandError):
    """The run or the measurement gave no result: no request was done, or a process died."""

    exit_code = 1
