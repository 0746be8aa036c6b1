from semipd.internal.v1 import sequence_pb2 as _sequence_pb2
from semipd.v1 import admin_pb2 as _admin_pb2
from semipd.v1 import generation_pb2 as _generation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CancelCause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CANCEL_CAUSE_UNSPECIFIED: _ClassVar[CancelCause]
    CANCEL_CAUSE_CLIENT_GONE: _ClassVar[CancelCause]
    CANCEL_CAUSE_OPERATOR: _ClassVar[CancelCause]
CANCEL_CAUSE_UNSPECIFIED: CancelCause
CANCEL_CAUSE_CLIENT_GONE: CancelCause
CANCEL_CAUSE_OPERATOR: CancelCause

class FromGateway(_message.Message):
    __slots__ = ("hello", "submit", "cancel", "stop_matched", "ask", "door_refusal")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    STOP_MATCHED_FIELD_NUMBER: _ClassVar[int]
    ASK_FIELD_NUMBER: _ClassVar[int]
    DOOR_REFUSAL_FIELD_NUMBER: _ClassVar[int]
    hello: GatewayHello
    submit: Submit
    cancel: Cancel
    stop_matched: StopMatched
    ask: Ask
    door_refusal: DoorRefusal
    def __init__(self, hello: _Optional[_Union[GatewayHello, _Mapping]] = ..., submit: _Optional[_Union[Submit, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., stop_matched: _Optional[_Union[StopMatched, _Mapping]] = ..., ask: _Optional[_Union[Ask, _Mapping]] = ..., door_refusal: _Optional[_Union[DoorRefusal, _Mapping]] = ...) -> None: ...

class ToGateway(_message.Message):
    __slots__ = ("state", "admitted", "ended", "deltas", "answer")
    STATE_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    DELTAS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    state: ServerState
    admitted: Admitted
    ended: Ended
    deltas: Deltas
    answer: Answer
    def __init__(self, state: _Optional[_Union[ServerState, _Mapping]] = ..., admitted: _Optional[_Union[Admitted, _Mapping]] = ..., ended: _Optional[_Union[Ended, _Mapping]] = ..., deltas: _Optional[_Union[Deltas, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ...) -> None: ...

class GatewayHello(_message.Message):
    __slots__ = ("pid", "port")
    PID_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    pid: int
    port: int
    def __init__(self, pid: _Optional[int] = ..., port: _Optional[int] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("ticket", "request_id", "prompt", "sampling", "stopping", "samples", "priority", "ttft_slo_s", "tpot_slo_s", "deadline_s", "time_limit_s")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TTFT_SLO_S_FIELD_NUMBER: _ClassVar[int]
    TPOT_SLO_S_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    TIME_LIMIT_S_FIELD_NUMBER: _ClassVar[int]
    ticket: int
    request_id: str
    prompt: _containers.RepeatedScalarFieldContainer[int]
    sampling: _sequence_pb2.Sampling
    stopping: _sequence_pb2.Stopping
    samples: int
    priority: int
    ttft_slo_s: float
    tpot_slo_s: float
    deadline_s: float
    time_limit_s: float
    def __init__(self, ticket: _Optional[int] = ..., request_id: _Optional[str] = ..., prompt: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[_sequence_pb2.Sampling, _Mapping]] = ..., stopping: _Optional[_Union[_sequence_pb2.Stopping, _Mapping]] = ..., samples: _Optional[int] = ..., priority: _Optional[int] = ..., ttft_slo_s: _Optional[float] = ..., tpot_slo_s: _Optional[float] = ..., deadline_s: _Optional[float] = ..., time_limit_s: _Optional[float] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("ticket", "request_id", "cause", "ask_id")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    ASK_ID_FIELD_NUMBER: _ClassVar[int]
    ticket: int
    request_id: str
    cause: CancelCause
    ask_id: int
    def __init__(self, ticket: _Optional[int] = ..., request_id: _Optional[str] = ..., cause: _Optional[_Union[CancelCause, str]] = ..., ask_id: _Optional[int] = ...) -> None: ...

class StopMatched(_message.Message):
    __slots__ = ("ticket", "index", "output_tokens")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ticket: int
    index: int
    output_tokens: int
    def __init__(self, ticket: _Optional[int] = ..., index: _Optional[int] = ..., output_tokens: _Optional[int] = ...) -> None: ...

class Ask(_message.Message):
    __slots__ = ("ask_id", "server_info", "load", "drain", "policies", "set_policy", "set_partition")
    ASK_ID_FIELD_NUMBER: _ClassVar[int]
    SERVER_INFO_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    SET_POLICY_FIELD_NUMBER: _ClassVar[int]
    SET_PARTITION_FIELD_NUMBER: _ClassVar[int]
    ask_id: int
    server_info: _admin_pb2.GetServerInfoRequest
    load: _admin_pb2.GetLoadRequest
    drain: _admin_pb2.DrainRequest
    policies: _admin_pb2.ListPoliciesRequest
    set_policy: _admin_pb2.SetPolicyRequest
    set_partition: _admin_pb2.SetPartitionRequest
    def __init__(self, ask_id: _Optional[int] = ..., server_info: _Optional[_Union[_admin_pb2.GetServerInfoRequest, _Mapping]] = ..., load: _Optional[_Union[_admin_pb2.GetLoadRequest, _Mapping]] = ..., drain: _Optional[_Union[_admin_pb2.DrainRequest, _Mapping]] = ..., policies: _Optional[_Union[_admin_pb2.ListPoliciesRequest, _Mapping]] = ..., set_policy: _Optional[_Union[_admin_pb2.SetPolicyRequest, _Mapping]] = ..., set_partition: _Optional[_Union[_admin_pb2.SetPartitionRequest, _Mapping]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("ask_id", "failure", "server_info", "load", "drain", "policies", "set_policy", "set_partition", "abort")
    ASK_ID_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    SERVER_INFO_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    SET_POLICY_FIELD_NUMBER: _ClassVar[int]
    SET_PARTITION_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    ask_id: int
    failure: Failure
    server_info: _admin_pb2.GetServerInfoResponse
    load: _admin_pb2.GetLoadResponse
    drain: _admin_pb2.DrainResponse
    policies: _admin_pb2.ListPoliciesResponse
    set_policy: _admin_pb2.SetPolicyResponse
    set_partition: _admin_pb2.SetPartitionResponse
    abort: _generation_pb2.AbortResponse
    def __init__(self, ask_id: _Optional[int] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., server_info: _Optional[_Union[_admin_pb2.GetServerInfoResponse, _Mapping]] = ..., load: _Optional[_Union[_admin_pb2.GetLoadResponse, _Mapping]] = ..., drain: _Optional[_Union[_admin_pb2.DrainResponse, _Mapping]] = ..., policies: _Optional[_Union[_admin_pb2.ListPoliciesResponse, _Mapping]] = ..., set_policy: _Optional[_Union[_admin_pb2.SetPolicyResponse, _Mapping]] = ..., set_partition: _Optional[_Union[_admin_pb2.SetPartitionResponse, _Mapping]] = ..., abort: _Optional[_Union[_generation_pb2.AbortResponse, _Mapping]] = ...) -> None: ...

class DoorRefusal(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class ServerState(_message.Message):
    __slots__ = ("serving", "draining", "reason")
    SERVING_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    serving: bool
    draining: bool
    reason: str
    def __init__(self, serving: _Optional[bool] = ..., draining: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class Admitted(_message.Message):
    __slots__ = ("ticket",)
    TICKET_FIELD_NUMBER: _ClassVar[int]
    ticket: int
    def __init__(self, ticket: _Optional[int] = ...) -> None: ...

class Ended(_message.Message):
    __slots__ = ("ticket", "failure")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    ticket: int
    failure: Failure
    def __init__(self, ticket: _Optional[int] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("reason", "message", "retry_after_s", "violations")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    retry_after_s: float
    violations: _containers.RepeatedCompositeFieldContainer[FieldViolation]
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_s: _Optional[float] = ..., violations: _Optional[_Iterable[_Union[FieldViolation, _Mapping]]] = ...) -> None: ...

class FieldViolation(_message.Message):
    __slots__ = ("field", "description")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    field: str
    description: str
    def __init__(self, field: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class Deltas(_message.Message):
    __slots__ = ("deltas",)
    DELTAS_FIELD_NUMBER: _ClassVar[int]
    deltas: _containers.RepeatedCompositeFieldContainer[Delta]
    def __init__(self, deltas: _Optional[_Iterable[_Union[Delta, _Mapping]]] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("ticket", "index", "position", "tokens", "logprobs", "end", "timings")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    ticket: int
    index: int
    position: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[_generation_pb2.Logprob]
    end: _sequence_pb2.End
    timings: _generation_pb2.Timings
    def __init__(self, ticket: _Optional[int] = ..., index: _Optional[int] = ..., position: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[_generation_pb2.Logprob, _Mapping]]] = ..., end: _Optional[_Union[_sequence_pb2.End, _Mapping]] = ..., timings: _Optional[_Union[_generation_pb2.Timings, _Mapping]] = ...) -> None: ...
