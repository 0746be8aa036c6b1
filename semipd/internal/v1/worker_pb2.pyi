from semipd.internal.v1 import sequence_pb2 as _sequence_pb2
from semipd.v1 import generation_pb2 as _generation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_ROLE_UNSPECIFIED: _ClassVar[WorkerRole]
    WORKER_ROLE_PREFILL: _ClassVar[WorkerRole]
    WORKER_ROLE_DECODE: _ClassVar[WorkerRole]

class ChunkOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHUNK_OUTCOME_UNSPECIFIED: _ClassVar[ChunkOutcome]
    CHUNK_OUTCOME_COMPUTED: _ClassVar[ChunkOutcome]
    CHUNK_OUTCOME_NO_ROOM: _ClassVar[ChunkOutcome]
    CHUNK_OUTCOME_GONE: _ClassVar[ChunkOutcome]
    CHUNK_OUTCOME_FAILED: _ClassVar[ChunkOutcome]
WORKER_ROLE_UNSPECIFIED: WorkerRole
WORKER_ROLE_PREFILL: WorkerRole
WORKER_ROLE_DECODE: WorkerRole
CHUNK_OUTCOME_UNSPECIFIED: ChunkOutcome
CHUNK_OUTCOME_COMPUTED: ChunkOutcome
CHUNK_OUTCOME_NO_ROOM: ChunkOutcome
CHUNK_OUTCOME_GONE: ChunkOutcome
CHUNK_OUTCOME_FAILED: ChunkOutcome

class ToWorker(_message.Message):
    __slots__ = ("appoint", "prefill", "adopt", "drop", "set_shares", "shutdown", "resign", "hold")
    APPOINT_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    ADOPT_FIELD_NUMBER: _ClassVar[int]
    DROP_FIELD_NUMBER: _ClassVar[int]
    SET_SHARES_FIELD_NUMBER: _ClassVar[int]
    SHUTDOWN_FIELD_NUMBER: _ClassVar[int]
    RESIGN_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    appoint: Appoint
    prefill: PrefillBatch
    adopt: Adopt
    drop: Drop
    set_shares: SetShares
    shutdown: Shutdown
    resign: Resign
    hold: Hold
    def __init__(self, appoint: _Optional[_Union[Appoint, _Mapping]] = ..., prefill: _Optional[_Union[PrefillBatch, _Mapping]] = ..., adopt: _Optional[_Union[Adopt, _Mapping]] = ..., drop: _Optional[_Union[Drop, _Mapping]] = ..., set_shares: _Optional[_Union[SetShares, _Mapping]] = ..., shutdown: _Optional[_Union[Shutdown, _Mapping]] = ..., resign: _Optional[_Union[Resign, _Mapping]] = ..., hold: _Optional[_Union[Hold, _Mapping]] = ...) -> None: ...

class FromWorker(_message.Message):
    __slots__ = ("hello", "ready", "prefill_done", "step_done", "heartbeat", "shares_applied", "failed", "resigned")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    PREFILL_DONE_FIELD_NUMBER: _ClassVar[int]
    STEP_DONE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    SHARES_APPLIED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    RESIGNED_FIELD_NUMBER: _ClassVar[int]
    hello: WorkerHello
    ready: Ready
    prefill_done: PrefillDone
    step_done: StepDone
    heartbeat: Heartbeat
    shares_applied: SharesApplied
    failed: Failed
    resigned: Resigned
    def __init__(self, hello: _Optional[_Union[WorkerHello, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., prefill_done: _Optional[_Union[PrefillDone, _Mapping]] = ..., step_done: _Optional[_Union[StepDone, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., shares_applied: _Optional[_Union[SharesApplied, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., resigned: _Optional[_Union[Resigned, _Mapping]] = ...) -> None: ...

class WorkerHello(_message.Message):
    __slots__ = ("pid",)
    PID_FIELD_NUMBER: _ClassVar[int]
    pid: int
    def __init__(self, pid: _Optional[int] = ...) -> None: ...

class Appoint(_message.Message):
    __slots__ = ("role", "cpus", "active_thread_percentage", "replacement")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_THREAD_PERCENTAGE_FIELD_NUMBER: _ClassVar[int]
    REPLACEMENT_FIELD_NUMBER: _ClassVar[int]
    role: WorkerRole
    cpus: _containers.RepeatedScalarFieldContainer[int]
    active_thread_percentage: int
    replacement: bool
    def __init__(self, role: _Optional[_Union[WorkerRole, str]] = ..., cpus: _Optional[_Iterable[int]] = ..., active_thread_percentage: _Optional[int] = ..., replacement: _Optional[bool] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("step_rows",)
    STEP_ROWS_FIELD_NUMBER: _ClassVar[int]
    step_rows: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, step_rows: _Optional[_Iterable[int]] = ...) -> None: ...

class PrefillBatch(_message.Message):
    __slots__ = ("batch", "chunks", "step_tokens")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    STEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    batch: int
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    step_tokens: int
    def __init__(self, batch: _Optional[int] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ..., step_tokens: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("lease", "request_id", "start", "tokens", "continuation", "prompt_tokens")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTINUATION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    lease: int
    request_id: str
    start: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    continuation: Continuation
    prompt_tokens: int
    def __init__(self, lease: _Optional[int] = ..., request_id: _Optional[str] = ..., start: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., continuation: _Optional[_Union[Continuation, _Mapping]] = ..., prompt_tokens: _Optional[int] = ...) -> None: ...

class Continuation(_message.Message):
    __slots__ = ("sampling", "stopping", "output", "prompt")
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    sampling: _sequence_pb2.Sampling
    stopping: _sequence_pb2.Stopping
    output: _containers.RepeatedScalarFieldContainer[int]
    prompt: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sampling: _Optional[_Union[_sequence_pb2.Sampling, _Mapping]] = ..., stopping: _Optional[_Union[_sequence_pb2.Stopping, _Mapping]] = ..., output: _Optional[_Iterable[int]] = ..., prompt: _Optional[_Iterable[int]] = ...) -> None: ...

class PrefillDone(_message.Message):
    __slots__ = ("batch", "chunks", "seconds")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    batch: int
    chunks: _containers.RepeatedCompositeFieldContainer[ChunkDone]
    seconds: float
    def __init__(self, batch: _Optional[int] = ..., chunks: _Optional[_Iterable[_Union[ChunkDone, _Mapping]]] = ..., seconds: _Optional[float] = ...) -> None: ...

class ChunkDone(_message.Message):
    __slots__ = ("lease", "outcome", "computed", "sampled", "error")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    lease: int
    outcome: ChunkOutcome
    computed: int
    sampled: Sampled
    error: str
    def __init__(self, lease: _Optional[int] = ..., outcome: _Optional[_Union[ChunkOutcome, str]] = ..., computed: _Optional[int] = ..., sampled: _Optional[_Union[Sampled, _Mapping]] = ..., error: _Optional[str] = ...) -> None: ...

class Sampled(_message.Message):
    __slots__ = ("token", "position", "logprob", "end")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    token: int
    position: int
    logprob: _generation_pb2.Logprob
    end: _sequence_pb2.End
    def __init__(self, token: _Optional[int] = ..., position: _Optional[int] = ..., logprob: _Optional[_Union[_generation_pb2.Logprob, _Mapping]] = ..., end: _Optional[_Union[_sequence_pb2.End, _Mapping]] = ...) -> None: ...

class Adopt(_message.Message):
    __slots__ = ("lease", "request_id", "context", "continuation", "priority", "sequence", "ordinal")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    CONTINUATION_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ORDINAL_FIELD_NUMBER: _ClassVar[int]
    lease: int
    request_id: str
    context: int
    continuation: Continuation
    priority: int
    sequence: int
    ordinal: int
    def __init__(self, lease: _Optional[int] = ..., request_id: _Optional[str] = ..., context: _Optional[int] = ..., continuation: _Optional[_Union[Continuation, _Mapping]] = ..., priority: _Optional[int] = ..., sequence: _Optional[int] = ..., ordinal: _Optional[int] = ...) -> None: ...

class Drop(_message.Message):
    __slots__ = ("leases",)
    LEASES_FIELD_NUMBER: _ClassVar[int]
    leases: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, leases: _Optional[_Iterable[int]] = ...) -> None: ...

class Hold(_message.Message):
    __slots__ = ("leases",)
    LEASES_FIELD_NUMBER: _ClassVar[int]
    leases: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, leases: _Optional[_Iterable[int]] = ...) -> None: ...

class StepDone(_message.Message):
    __slots__ = ("step", "leases", "tokens", "positions", "ends", "logprobs", "preempted", "dropped", "failures", "seconds", "context_tokens", "starved")
    STEP_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STARVED_FIELD_NUMBER: _ClassVar[int]
    step: int
    leases: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    positions: _containers.RepeatedScalarFieldContainer[int]
    ends: _containers.RepeatedCompositeFieldContainer[RowEnd]
    logprobs: _containers.RepeatedCompositeFieldContainer[RowLogprob]
    preempted: _containers.RepeatedScalarFieldContainer[int]
    dropped: _containers.RepeatedScalarFieldContainer[int]
    failures: _containers.RepeatedCompositeFieldContainer[LeaseFailure]
    seconds: float
    context_tokens: int
    starved: bool
    def __init__(self, step: _Optional[int] = ..., leases: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[int]] = ..., positions: _Optional[_Iterable[int]] = ..., ends: _Optional[_Iterable[_Union[RowEnd, _Mapping]]] = ..., logprobs: _Optional[_Iterable[_Union[RowLogprob, _Mapping]]] = ..., preempted: _Optional[_Iterable[int]] = ..., dropped: _Optional[_Iterable[int]] = ..., failures: _Optional[_Iterable[_Union[LeaseFailure, _Mapping]]] = ..., seconds: _Optional[float] = ..., context_tokens: _Optional[int] = ..., starved: _Optional[bool] = ...) -> None: ...

class RowEnd(_message.Message):
    __slots__ = ("row", "end")
    ROW_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    row: int
    end: _sequence_pb2.End
    def __init__(self, row: _Optional[int] = ..., end: _Optional[_Union[_sequence_pb2.End, _Mapping]] = ...) -> None: ...

class RowLogprob(_message.Message):
    __slots__ = ("row", "logprob")
    ROW_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    row: int
    logprob: _generation_pb2.Logprob
    def __init__(self, row: _Optional[int] = ..., logprob: _Optional[_Union[_generation_pb2.Logprob, _Mapping]] = ...) -> None: ...

class LeaseFailure(_message.Message):
    __slots__ = ("lease", "error")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    lease: int
    error: str
    def __init__(self, lease: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("pulses", "leases", "adopted_through", "answered_through", "idle", "held")
    PULSES_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    ADOPTED_THROUGH_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_THROUGH_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    pulses: int
    leases: _containers.RepeatedScalarFieldContainer[int]
    adopted_through: int
    answered_through: int
    idle: bool
    held: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, pulses: _Optional[int] = ..., leases: _Optional[_Iterable[int]] = ..., adopted_through: _Optional[int] = ..., answered_through: _Optional[int] = ..., idle: _Optional[bool] = ..., held: _Optional[_Iterable[int]] = ...) -> None: ...

class SetShares(_message.Message):
    __slots__ = ("change", "percent", "cpus")
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    change: int
    percent: float
    cpus: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, change: _Optional[int] = ..., percent: _Optional[float] = ..., cpus: _Optional[_Iterable[int]] = ...) -> None: ...

class SharesApplied(_message.Message):
    __slots__ = ("change", "delay_s", "sms")
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    DELAY_S_FIELD_NUMBER: _ClassVar[int]
    SMS_FIELD_NUMBER: _ClassVar[int]
    change: int
    delay_s: float
    sms: int
    def __init__(self, change: _Optional[int] = ..., delay_s: _Optional[float] = ..., sms: _Optional[int] = ...) -> None: ...

class Shutdown(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Resign(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Resigned(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Failed(_message.Message):
    __slots__ = ("error",)
    ERROR_FIELD_NUMBER: _ClassVar[int]
    error: str
    def __init__(self, error: _Optional[str] = ...) -> None: ...
