"""`semipd serve`: every field of ServerConfig as an option of the same name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import typer

from semipd.cli import exits
from semipd.core.config import ServerConfig
from semipd.core.errors import ConfigError, StartError

MODEL, NETWORK, SCHEDULING, MEMORY, FAULTS, LOGS = "Model", "Network", "Scheduling", "Memory", "Faults", "Logs"


def panel(name: str, help_: str) -> typer.models.OptionInfo:
    found: typer.models.OptionInfo = typer.Option(help=help_, rich_help_panel=name)
    return found


def serve(
    model: Annotated[
        str,
        panel(
            MODEL,
            "A model's directory as Hugging Face lays it out: config.json, safetensors, tokenizer.json. "
            "[dim]default: the small model that comes with semipd[/]",
        ),
    ] = "",
    served_model_name: Annotated[
        str, panel(MODEL, "What clients call the model. [dim]default: the directory's name[/]")
    ] = "",
    load_format: Annotated[
        Literal["auto", "safetensors", "dummy"],
        panel(MODEL, "dummy: random weights in the shape of config.json, for benchmarks."),
    ] = "auto",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        panel(MODEL, "Number format of weights and KV. auto: float32 on a CPU, the checkpoint's own on a GPU."),
    ] = "auto",
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        panel(MODEL, "auto: a GPU where there is one that can be used; `semipd doctor`."),
    ] = "auto",
    max_context: Annotated[
        int, panel(MODEL, "Prompt and answer together, in tokens. 0: as long as the model can.")
    ] = 0,
    host: Annotated[
        str, panel(NETWORK, "Address to listen on. 0.0.0.0 opens it to the network: then use keys and TLS.")
    ] = "127.0.0.1",
    port: Annotated[int, panel(NETWORK, "Port to listen on. 0: any free one.")] = 50051,
    gateways: Annotated[int, panel(NETWORK, "Processes that face the clients; they share the port.")] = 1,
    api_keys_file: Annotated[
        str,
        panel(
            NETWORK, "A file with one API key a line; clients must bring one. [dim]default: nobody is asked for one[/]"
        ),
    ] = "",
    tls_certificate: Annotated[
        str, panel(NETWORK, "The server's certificate, PEM. Together with --tls-key. [dim]default: plain text[/]")
    ] = "",
    tls_key: Annotated[str, panel(NETWORK, "The certificate's private key, PEM.")] = "",
    metrics_port: Annotated[
        int, panel(NETWORK, "Prometheus metrics at http://127.0.0.1:PORT/metrics. -1: none; 0: any free port.")
    ] = -1,
    otlp_endpoint: Annotated[
        str,
        panel(NETWORK, "Send OpenTelemetry traces there; needs semipd\\[otel]. [dim]default: no traces[/]"),
    ] = "",
    policy: Annotated[
        str, panel(SCHEDULING, "Who runs when, on how much of the device. `semipd policies` lists them.")
    ] = "adaptive",
    policy_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="An option of the policy. May be given several times.",
            rich_help_panel=SCHEDULING,
        ),
    ] = None,
    policy_budget_s: Annotated[
        float,
        panel(
            SCHEDULING,
            "Seconds that the policy may compute for an answer, which may take twice as long by the clock; one that "
            "overruns is replaced by fcfs.",
        ),
    ] = 0.05,
    partition: Annotated[
        Literal["auto", "none", "cores", "green", "mps"],
        panel(
            SCHEDULING,
            "How prefill and decode share the device. cores: CPU sets; green, mps: a GPU's multiprocessors; "
            "none: they compete.",
        ),
    ] = "auto",
    max_batch_tokens: Annotated[
        int, panel(SCHEDULING, "Prompt tokens in one prefill batch. 0: 512 on a CPU, 8192 on a GPU.")
    ] = 0,
    mps: Annotated[
        Literal["auto", "own", "adopt", "off"],
        panel(
            SCHEDULING,
            "The MPS daemon that lets two processes compute on a GPU at once. auto: the server starts its own where it "
            "can; own: or refuses to start; adopt: the one of CUDA_MPS_PIPE_DIRECTORY; off: one process at a time.",
        ),
    ] = "auto",
    capture_budget_s: Annotated[
        float,
        panel(SCHEDULING, "On a GPU: seconds for capturing CUDA graphs at start; the others follow when idle."),
    ] = 20.0,
    max_running: Annotated[
        int, panel(SCHEDULING, "Answers in the decode batch at once. 0: 64 on a CPU, 512 on a GPU.")
    ] = 0,
    max_waiting: Annotated[int, panel(SCHEDULING, "Requests in the queue; beyond, they are refused at once.")] = 512,
    kv_pages: Annotated[int, panel(MEMORY, "Pages of 16 tokens in the KV pool. 0: by --kv-memory-gb.")] = 0,
    kv_memory_gb: Annotated[
        float, panel(MEMORY, "Size of the KV pool in GB. 0: what can be used, or the device can spare.")
    ] = 0.0,
    drain_timeout_s: Annotated[
        float, panel(FAULTS, "After Ctrl-C or SIGTERM: seconds that running requests have to finish.")
    ] = 30.0,
    stall_unhealthy_s: Annotated[
        float, panel(FAULTS, "A worker with work and no progress for so long: health says not serving.")
    ] = 2.0,
    stall_replace_s: Annotated[float, panel(FAULTS, "For so long: the worker is replaced.")] = 8.0,
    spare_worker: Annotated[
        bool, panel(FAULTS, "Keep a process warm (two for a GPU), so that a dead worker is replaced at once.")
    ] = True,
    log_format: Annotated[
        Literal["console", "json"], panel(LOGS, "console: for eyes; json: one object a line.")
    ] = "console",
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        panel(LOGS, "What is logged, at least. Never a prompt or an answer."),
    ] = "info",
    announce_fd: Annotated[
        int | None,
        panel(LOGS, 'Write {"address": "HOST:PORT"} to this file descriptor when requests are served; for scripts.'),
    ] = None,
) -> None:
    """Start a server. Without options: the bundled model on 127.0.0.1:50051.

    Ctrl-C (or SIGTERM) refuses new requests, lets running ones finish and exits; a second one ends at once.
    Exit code: 0 stopped, 1 it could not start, 2 wrong usage.
    """
    from rich.console import Console

    from semipd.cli.serve_console import RichServeConsole
    from semipd.cli.terminal import complain
    from semipd.coordinator import server

    try:
        config = ServerConfig(
            model=model,
            served_model_name=served_model_name,
            load_format=load_format,
            dtype=dtype,
            device=device,
            host=host,
            port=port,
            gateways=gateways,
            api_keys_file=api_keys_file,
            tls_certificate=tls_certificate,
            tls_key=tls_key,
            metrics_port=metrics_port,
            otlp_endpoint=otlp_endpoint,
            policy=policy,
            policy_options=named_values(policy_option or ()),
            policy_budget_s=policy_budget_s,
            partition=partition,
            mps=mps,
            capture_budget_s=capture_budget_s,
            kv_pages=kv_pages,
            kv_memory_gb=kv_memory_gb,
            max_context=max_context,
            max_batch_tokens=max_batch_tokens,
            max_running=max_running,
            max_waiting=max_waiting,
            drain_timeout_s=drain_timeout_s,
            stall_unhealthy_s=stall_unhealthy_s,
            stall_replace_s=stall_replace_s,
            spare_worker=spare_worker,
            log_format=log_format,
            log_level=log_level,
        )
        with RichServeConsole(Console(stderr=True, highlight=False, soft_wrap=True), announce_fd) as console:
            code = server.serve(config, console)
    except ConfigError as error:
        complain(str(error))
        raise typer.Exit(exits.USAGE) from None
    except StartError as error:
        complain(str(error))
        raise typer.Exit(exits.FAILED) from None
    raise typer.Exit(code)


def named_values(given: Iterable[str]) -> dict[str, str]:
    """["prefill=40"] -> {"prefill": "40"}. Raises ConfigError."""
    values = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise ConfigError(f"--policy-option: must be NAME=VALUE; got {text!r}")
        if name in values:
            raise ConfigError(f"--policy-option: {name} is given twice")
        values[name] = value
    return values
