"""`semipd profile`: records how long prefill and decode take on this GPU, for policies and for the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def profile(
    model: Annotated[Path, typer.Option(help="A model's directory; only the shape in its config.json is used.")],
    out: Annotated[
        Path | None,
        typer.Option(help="A file to write as well, as measurements come in. Default: only this machine's cache."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A third of the measurements, for a first look.")] = False,
    seconds: Annotated[float, typer.Option(min=10, help="What is not measured by then is left out.")] = 240.0,
    dtype: Annotated[str, typer.Option(help="Number format of weights and KV.")] = "bfloat16",
    mps: Annotated[
        str, typer.Option(help="own: start an MPS daemon; adopt: use the one that CUDA_MPS_PIPE_DIRECTORY names.")
    ] = "own",
) -> None:
    """Record a latency profile on a GPU: prefill and decode alone and side by side, over batch, context and SMs.

    A server of this model on this GPU finds the profile at its next start, in $XDG_CACHE_HOME/semipd/profiles
    (~/.cache/semipd/profiles); `semipd doctor` lists what is there.

    Nothing else should compute on the GPU meanwhile. The most telling measurements come first and the file is saved
    after each that makes it more than it was, so an interrupted recording leaves what it has.

    Exit code: 0 a profile was written, 1 it could not be recorded, 2 wrong usage, 130 Ctrl-C (what there is is saved).
    """
    from semipd.bench.commands.exits import errors_as_messages
    from semipd.profiler.record import record

    with errors_as_messages():
        record(model, out, quick=quick, seconds=seconds, dtype=dtype, mps=mps)
