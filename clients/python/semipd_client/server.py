"""A server's description of itself, its models and its load, as frozen values. Times are in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from semipd_client._proto.semipd.v1 import admin_pb2, model_pb2


@dataclass(frozen=True, slots=True)
class Capabilities:
    text: bool
    """The checkpoint has a tokenizer: text goes in and out, not token ids alone."""
    chat: bool
    """The checkpoint has a chat template."""
    logprobs: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one request may ask for."""

    samples: int
    stop_strings: int
    stop_token_ids: int
    top_logprobs: int
    logit_bias: int


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    architecture: str
    dtype: str
    parameters: int
    vocab_size: int
    max_context: int
    """Prompt and output together, in tokens."""
    eos_token_ids: tuple[int, ...]
    capabilities: Capabilities
    limits: Limits


@dataclass(frozen=True, slots=True)
class Process:
    role: str
    """"coordinator", "resident", "prefill", "decode" or "gateway"."""
    pid: int
    incarnation: int
    """Counts the processes that have had this role."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    version: str
    model: str
    device: str
    partition_backend: str
    policy: str
    processes: tuple[Process, ...]
    uptime_s: float
    total_pages: int
    page_size: int
    """Tokens of a page."""


@dataclass(frozen=True, slots=True)
class Partition:
    """The share of the device that each phase is granted, in percent."""

    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles of a time, in seconds."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Load:
    waiting: int
    """Accepted requests that no worker has begun."""
    prefilling: int
    decoding: int
    free_pages: int
    total_pages: int
    partition: Partition
    policy: str
    draining: bool
    time_to_first_token: Percentiles | None
    """TTFT over the last 30 seconds; None if there was none."""
    inter_token_latency: Percentiles | None
    output_tokens_per_second: float
    finished_total: int
    refused_total: int
    worker_restarts_total: int
    slo_attainment: float | None
    """Part of the last 30 seconds' requests that met every SLO they named; None if none named one."""


@dataclass(frozen=True, slots=True)
class Policy:
    name: str
    summary: str
    distribution: str
    """The package that brings it."""
    active: bool


def model_of(m: model_pb2.Model) -> Model:
    limits = m.limits
    return Model(
        name=m.name,
        architecture=m.architecture,
        dtype=m.dtype,
        parameters=m.parameters,
        vocab_size=m.vocab_size,
        max_context=m.max_context,
        eos_token_ids=tuple(m.eos_token_ids),
        capabilities=Capabilities(m.capabilities.text, m.capabilities.chat, m.capabilities.logprobs),
        limits=Limits(
            samples=limits.max_samples,
            stop_strings=limits.max_stop_strings,
            stop_token_ids=limits.max_stop_token_ids,
            top_logprobs=limits.max_top_logprobs,
            logit_bias=limits.max_logit_bias,
        ),
    )


def server_info_of(m: admin_pb2.GetServerInfoResponse) -> ServerInfo:
    return ServerInfo(
        version=m.version,
        model=m.model,
        device=m.device,
        partition_backend=m.partition_backend,
        policy=m.policy,
        processes=tuple(Process(p.role, p.pid, p.incarnation) for p in m.processes),
        uptime_s=m.uptime,
        total_pages=m.total_pages,
        page_size=m.page_size,
    )


def load_of(m: admin_pb2.Load) -> Load:
    def percentiles(field: str) -> Percentiles | None:
        found: admin_pb2.Percentiles = getattr(m, field)
        return Percentiles(found.p50, found.p90, found.p99) if m.HasField(field) else None

    return Load(
        waiting=m.waiting,
        prefilling=m.prefilling,
        decoding=m.decoding,
        free_pages=m.free_pages,
        total_pages=m.total_pages,
        partition=partition_of(m.partition),
        policy=m.policy,
        draining=m.draining,
        time_to_first_token=percentiles("time_to_first_token"),
        inter_token_latency=percentiles("inter_token_latency"),
        output_tokens_per_second=m.output_tokens_per_second,
        finished_total=m.finished_total,
        refused_total=m.refused_total,
        worker_restarts_total=m.worker_restarts_total,
        slo_attainment=m.slo_attainment if m.HasField("slo_attainment") else None,
    )


def partition_of(m: admin_pb2.Partition) -> Partition:
    return Partition(m.prefill, m.decode)


def policy_of(m: admin_pb2.Policy) -> Policy:
    return Policy(m.name, m.summary, m.distribution, m.active)
