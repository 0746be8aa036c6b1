"""Talks to a semipd server: `Client` for threads, `AsyncClient` for an event loop.

with Client("127.0.0.1:50051") as client, client.stream("Once upon a time", max_tokens=64) as stream:
    for text in stream:
        print(text, end="", flush=True)
"""

from semipd_client.async_client import AsyncClient
from semipd_client.async_stream import AsyncResponses, AsyncStream
from semipd_client.channel import TlsOptions
from semipd_client.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    DeadlineUnmeetable,
    FieldViolation,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    QueueFull,
    ResourceExhausted,
    SemipdClientError,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from semipd_client.events import Accepted, Event, Finished, Summary, Token
from semipd_client.options import Message, Options, Prompt
from semipd_client.results import (
    AbortOutcome,
    Finish,
    FinishReason,
    Generation,
    Logprob,
    Sample,
    Timings,
    Usage,
)
from semipd_client.server import (
    Capabilities,
    Limits,
    Load,
    Model,
    Partition,
    Percentiles,
    Policy,
    Process,
    ServerInfo,
)
from semipd_client.stream import Responses, Stream
from semipd_client.sync_client import Client

__version__ = "0.1.0"

__all__ = [
    "AbortOutcome",
    "Aborted",
    "Accepted",
    "AlreadyExists",
    "AsyncClient",
    "AsyncResponses",
    "AsyncStream",
    "Cancelled",
    "Capabilities",
    "Client",
    "DeadlineExceeded",
    "DeadlineUnmeetable",
    "Event",
    "FieldViolation",
    "Finish",
    "FinishReason",
    "Finished",
    "Generation",
    "Internal",
    "InvalidArgument",
    "Limits",
    "Load",
    "Logprob",
    "Message",
    "Model",
    "NotFound",
    "Options",
    "Partition",
    "Percentiles",
    "PermissionDenied",
    "Policy",
    "Process",
    "Prompt",
    "QueueFull",
    "ResourceExhausted",
    "Responses",
    "Sample",
    "SemipdClientError",
    "ServerInfo",
    "Stream",
    "Summary",
    "Timings",
    "TlsOptions",
    "Token",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "Usage",
]
