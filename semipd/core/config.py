"""The configuration of a server: one frozen value, resolved once at start and read by every process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from semipd.core.errors import ConfigError

PAGE_SIZE = 16
"""Tokens of a page, in both phases."""

PLANS_AHEAD = 2
"""Prefill batches that a worker has at once: the one that it computes, and the next."""
REVIEW_S = 0.02
"""Longest time in seconds between two plans while there are requests, so that a policy can change the shares."""
OBSERVATIONS_KEPT = 256
"""Steps, first tokens and completions that a snapshot shows, of each the latest."""

GPU_RESERVE_BYTES = 7_000_000_000
"""GPU memory that stays free for the two workers where the size of the KV pool is left to the server: a CUDA context,
workspaces, captured graphs and activations of each. A device that is full to the brim launches graphs kernel by kernel,
which takes twice as long."""

GRAPH_CONTEXT = 4
"""A prefill pass is captured as a graph on a GPU if its prompts attend to at most this many times its tokens: beyond,
the faster attention of a pass that is launched kernel by kernel counts for more than the launches do."""
GRAPH_FEW_TOKENS = 256
"""Tokens: a pass of fewer counts as one of this many for GRAPH_CONTEXT, since its launches would take longer than any
attention."""

MIXED_TOKENS = 2048
"""Most prompt tokens in a decode step on a GPU: activations for more would be memory that the pool can use better, and
a step of so many takes 50 ms of an H200 with 8 billion weights."""
MIXED_PROMPTS = 64
"""Most prompts in a decode step on a GPU."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything that the command line, the checks and the documentation know about a field of ServerConfig."""

    group: str
    help: str
    choices: tuple[str, ...] = ()
    """The allowed values; empty: any."""
    low: float | None = None
    high: float | None = None
    """Bounds, both allowed; None: none."""


def setting(
    default: T,
    group: str,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
) -> T:
    """Declares a field with its default, and everything else that is known about it, in one place."""
    about = Setting(group, help, choices, low, high)
    declared: T = field(default=default, metadata={SETTING: about})
    return declared


SETTING = "setting"
MODEL, NETWORK, SCHEDULING, MEMORY, FAULTS, LOGS = "Model", "Network", "Scheduling", "Memory", "Faults", "Logs"


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The settings that `semipd serve` was given. Every field is an option of the same name.

    Raises ConfigError, naming the option and what is allowed.
    """

    model: str = setting(
        "",
        MODEL,
        "A model's directory as Hugging Face lays it out: config.json, safetensors, tokenizer.json. Default: the small "
        "model that comes with semipd.",
    )
    served_model_name: str = setting("", MODEL, "The name that clients call the model. Default: the directory's name.")
    load_format: str = setting(
        "auto",
        MODEL,
        "dummy: random weights in the shape of config.json, for benchmarks.",
        choices=("auto", "safetensors", "dummy"),
    )
    dtype: str = setting(
        "auto",
        MODEL,
        "Number format of weights and KV. auto: float32 on a CPU, the checkpoint's own on a GPU.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    device: str = setting(
        "auto",
        MODEL,
        "auto: a GPU where there is one that can be used; `semipd doctor` says why.",
        choices=("auto", "cpu", "cuda"),
    )
    max_context: int = setting(
        0, MODEL, "Prompt and answer together, in tokens. 0: as long as the model can.", low=0, high=2**24
    )

    host: str = setting(
        "127.0.0.1", NETWORK, "Address to listen on. 0.0.0.0 opens it to the network: then use keys and TLS."
    )
    port: int = setting(50051, NETWORK, "Port to listen on. 0: any free one.", low=0, high=65535)
    gateways: int = setting(1, NETWORK, "Processes that face the clients; they share the port.", low=1, high=64)
    api_keys_file: str = setting(
        "", NETWORK, "A file with one API key a line; clients must bring one. Default: no client needs a key."
    )
    tls_certificate: str = setting(
        "", NETWORK, "The server's certificate, PEM. Together with --tls-key. Default: plain text."
    )
    tls_key: str = setting("", NETWORK, "The certificate's private key, PEM.")
    metrics_port: int = setting(
        -1,
        NETWORK,
        "Prometheus metrics at http://127.0.0.1:PORT/metrics. -1: none; 0: any free port.",
        low=-1,
        high=65535,
    )
    otlp_endpoint: str = setting(
        "", NETWORK, "Send OpenTelemetry traces of the RPCs there; needs semipd\\[otel]. Default: no traces."
    )

    policy: str = setting(
        "adaptive", SCHEDULING, "Decides what runs when, on how much of the device. `semipd policies` lists them."
    )
    policy_options: Mapping[str, str] = field(default_factory=dict)
    """The options of the policy, as --policy-option NAME=VALUE gives them."""
    policy_budget_s: float = setting(
        0.05,
        SCHEDULING,
        "Seconds that the policy may compute for an answer, which may take twice as long by the clock; one that "
        "overruns is replaced by fcfs.",
        low=0.001,
        high=10,
    )
    partition: str = setting(
        "auto",
        SCHEDULING,
        "How prefill and decode share the device. cores: CPU sets; green, mps: a GPU's multiprocessors; none: they "
        "compete.",
        choices=("auto", "none", "cores", "green", "mps"),
    )
    profile: str = setting(
        "",
        SCHEDULING,
        "The latency profile that policies begin with: a file that `semipd profile` wrote, or the name of one that "
        "ships. Default: one of this GPU and model, else an estimate from the device's own data.",
    )
    max_batch_tokens: int = setting(
        0, SCHEDULING, "Prompt tokens in one prefill batch. 0: 512 on a CPU, 8192 on a GPU.", low=0, high=2**20
    )
    mps: str = setting(
        "auto",
        SCHEDULING,
        "The MPS daemon that lets two processes compute on a GPU at once. auto: the server starts its own where it "
        "can; own: or refuses to start; adopt: the one of CUDA_MPS_PIPE_DIRECTORY; off: one process at a time.",
        choices=("auto", "own", "adopt", "off"),
    )
    capture_budget_s: float = setting(
        20.0,
        SCHEDULING,
        "On a GPU: seconds that a worker may spend on capturing CUDA graphs before it is ready; it captures the others "
        "while it is idle.",
        low=0,
        high=3600,
    )
    max_running: int = setting(
        0, SCHEDULING, "Sequences in the decode batch at once. 0: 64 on a CPU, 512 on a GPU.", low=0, high=4096
    )
    max_waiting: int = setting(
        512, SCHEDULING, "Sequences in the queue; beyond, requests are refused at once.", low=1, high=100_000
    )

    kv_pages: int = setting(
        0, MEMORY, "Pages of 16 tokens in the KV pool. 0: by --kv-memory-gb.", low=0, high=2**31 - 1
    )
    kv_memory_gb: float = setting(
        0.0, MEMORY, "Size of the KV pool in GB. 0: what can be used, or what the device can spare.", low=0, high=1e6
    )

    drain_timeout_s: float = setting(
        30.0, FAULTS, "After Ctrl-C or SIGTERM: seconds that running requests have to finish.", low=0, high=86_400
    )
    stall_unhealthy_s: float = setting(
        2.0,
        FAULTS,
        "Seconds in which a worker with work shows no progress, until health says not serving.",
        low=0.1,
        high=3600,
    )
    stall_replace_s: float = setting(
        8.0,
        FAULTS,
        "Seconds in which a worker with work shows no progress, until it is replaced.",
        low=0.2,
        high=3600,
    )
    spare_worker: bool = setting(
        True, FAULTS, "Keep a process warm (two for a GPU), so that a dead worker is replaced at once."
    )

    log_format: str = setting(
        "console", LOGS, "console: for eyes; json: one object a line.", choices=("console", "json")
    )
    log_level: str = setting(
        "info",
        LOGS,
        "The least level that is logged. A prompt or an answer never is.",
        choices=("debug", "info", "warning", "error"),
    )

    def __post_init__(self) -> None:
        for name, about in settings().items():
            value = getattr(self, name)
            if about.choices and value not in about.choices:
                raise ConfigError(f"--{option(name)}: must be one of {', '.join(about.choices)}; got {value!r}")
            if about.low is not None and about.high is not None and not about.low <= value <= about.high:
                raise ConfigError(f"--{option(name)}: must be {about.low:g} to {about.high:g}; got {value:g}")
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


def settings() -> dict[str, Setting]:
    """Returns what is known about each field but `policy_options`, by its name, in the order of the fields."""
    return {f.name: f.metadata[SETTING] for f in fields(ServerConfig) if SETTING in f.metadata}


def resolve(config: ServerConfig, device: str) -> ServerConfig:
    """Decides what was left to the server, for `device` ("cpu" or "cuda"). The new value is not changed any more."""
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


def pages_for(tokens: int, page_size: int = PAGE_SIZE) -> int:
    """Returns the number of pages that hold the KV of `tokens` tokens of one sequence; the last may be part full."""
    return -(-tokens // page_size)
