"""How a server is set up. One frozen value, resolved once at start and read by every process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from semipd.core.errors import ConfigError

PAGE_SIZE = 16
"""Tokens a page, in both phases."""

PLANS_AHEAD = 2
"""Prefill batches that a worker has at once: the one that it computes, and the next."""
REVIEW_S = 0.02
"""Longest time in seconds between two plans while there are requests, so that a policy can change the shares."""
OBSERVATIONS_KEPT = 256
"""Steps, first tokens and completions that a snapshot shows, of each the latest."""

MIXED_TOKENS = 2048
"""Of prompts in a decode step on a GPU, at most: activations for more would be memory that the pool can use better, and
a step of so many takes 50 ms of an H200 with 8 billion weights."""
MIXED_PROMPTS = 64
"""In a decode step on a GPU, at most."""

DTYPES = ("auto", "float32", "bfloat16", "float16")
LOAD_FORMATS = ("auto", "safetensors", "dummy")
PARTITIONS = ("auto", "none", "cores", "green", "mps")
MPS = ("auto", "own", "adopt", "off")
LOG_FORMATS = ("console", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What `semipd serve` was asked for. Every field is an option of the same name.

    Raises ConfigError, naming the option and what is allowed.
    """

    model: str = ""
    """Model directory; empty: the bundled model."""
    served_model_name: str = ""
    """Empty: the directory's name."""
    load_format: str = "auto"
    dtype: str = "auto"
    """auto: float32 on a CPU, the checkpoint's own on a GPU."""
    device: str = "auto"
    """auto, cpu or cuda."""

    host: str = "127.0.0.1"
    port: int = 50051
    """0: any free one."""
    gateways: int = 1
    api_keys_file: str = ""
    """One key a line; empty: no authentication."""
    tls_certificate: str = ""
    tls_key: str = ""
    metrics_port: int = -1
    """Prometheus endpoint on loopback; -1: none, 0: any free port."""
    otlp_endpoint: str = ""
    """OpenTelemetry traces of the RPCs go there; empty: none."""

    policy: str = "adaptive"
    policy_options: Mapping[str, str] = field(default_factory=dict)
    policy_budget_s: float = 0.05
    """A call of the policy that computes for longer, or takes twice as long by the clock, is ended and the policy
    replaced."""
    partition: str = "auto"
    mps: str = "auto"
    """auto: the server starts an MPS daemon of its own where it can; own: or refuses to start; adopt: uses the one that
    CUDA_MPS_PIPE_DIRECTORY names; off: none, and the phases take turns on a GPU. No effect on a CPU."""
    capture_budget_s: float = 20.0
    """On a GPU: seconds that a worker may spend on capturing CUDA graphs before it is ready; the rest is captured while
    it is idle."""

    kv_pages: int = 0
    """Pages in the pool; 0: from `kv_memory_gb`."""
    kv_memory_gb: float = 0.0
    """0: what the device can spare."""
    max_context: int = 0
    """Prompt and output together, in tokens; 0: the model's own."""
    max_batch_tokens: int = 0
    """Prompt tokens in one prefill batch; 0: 512 on a CPU, 8192 on a GPU."""
    max_running: int = 0
    """Sequences in the decode batch; 0: 64 on a CPU, 512 on a GPU."""
    max_waiting: int = 512
    """Requests in the queue; beyond, they are refused at once."""

    drain_timeout_s: float = 30.0
    stall_unhealthy_s: float = 2.0
    """A worker with work and no progress for so long: not serving."""
    stall_replace_s: float = 8.0
    """For so long: replaced."""
    spare_worker: bool = True
    """Keep a process with everything imported, so that a dead worker is replaced in milliseconds."""

    log_format: str = "console"
    log_level: str = "info"

    def __post_init__(self) -> None:
        def one_of(name: str, allowed: tuple[str, ...]) -> None:
            if getattr(self, name) not in allowed:
                raise ConfigError(f"--{option(name)}: must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")

        def within(name: str, low: float, high: float) -> None:
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"--{option(name)}: must be {low:g} to {high:g}; got {value:g}")

        one_of("load_format", LOAD_FORMATS)
        one_of("dtype", DTYPES)
        one_of("device", ("auto", "cpu", "cuda"))
        one_of("partition", PARTITIONS)
        one_of("mps", MPS)
        one_of("log_format", LOG_FORMATS)
        one_of("log_level", LOG_LEVELS)
        within("port", 0, 65535)
        within("metrics_port", -1, 65535)
        within("gateways", 1, 64)
        within("kv_pages", 0, 2**31 - 1)
        within("kv_memory_gb", 0, 1e6)
        within("max_context", 0, 2**24)
        within("max_batch_tokens", 0, 2**20)
        within("capture_budget_s", 0, 3600)
        within("max_running", 0, 4096)
        within("max_waiting", 1, 100_000)
        within("policy_budget_s", 0.001, 10)
        within("drain_timeout_s", 0, 86_400)
        within("stall_unhealthy_s", 0.1, 3600)
        within("stall_replace_s", 0.2, 3600)
        if self.stall_replace_s <= self.stall_unhealthy_s:
            raise ConfigError("--stall-replace-s: must be above --stall-unhealthy-s")
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ConfigError("--tls-certificate and --tls-key: give both or neither")
        if self.gateways > 1 and self.port == 0:
            raise ConfigError("--port: several gateways share one port, so it can't be 0")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ServerConfig:
        values: dict[str, Any] = json.loads(text)
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"unknown settings: {', '.join(unknown)}")
        return cls(**values)


def resolve(config: ServerConfig, device: str) -> ServerConfig:
    """What was left to the server, decided for `device` ("cpu" or "cuda"): a new value that no process changes."""
    on_gpu = device == "cuda"
    return replace(
        config,
        device=device,
        max_running=config.max_running or (512 if on_gpu else 64),
        max_batch_tokens=config.max_batch_tokens or (8192 if on_gpu else 512),
    )


def option(field_name: str) -> str:
    """The command line's name of a field ("max_context" -> "max-context")."""
    return field_name.replace("_", "-")
