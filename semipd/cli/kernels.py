"""`semipd kernels`: the compiled kernels that a GPU wants, looked at and made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from semipd.cli import exits

if TYPE_CHECKING:
    from semipd.engine.flashinfer_build import BuildProgress
    from semipd.engine.flashinfer_kernels import Capability, Kernel

kernels_app = typer.Typer(
    help="The compiled attention kernels that a GPU wants: which are there, and making them.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        file_okay=False,
        help="The model directory to be served; its config.json is enough. [dim]default: head sizes 64 and 128, which "
        "most checkpoints have[/]",
    ),
]
Dtype: TypeAlias = Annotated[
    str, typer.Option(help="bfloat16 or float16. [dim]auto: the model's own, else bfloat16[/]", show_default=False)
]
Arch: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="The GPU's architecture, such as 9.0a for an H100 or H200. [dim]default: that of the GPU here[/]"
    ),
]


@kernels_app.command("list")
def list_kernels(model: Model = None, dtype: Dtype = "auto", arch: Arch = None) -> None:
    """List the kernels that are wanted, whether each is there, and where from.

    Exit code: 0 all are there, 1 some are not.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from semipd.cli.terminal import remark
    from semipd.engine.flashinfer_kernels import NOT_INSTALLED, find, flashinfer_version

    kernels, capability = _wanted(model, dtype, arch)
    if not kernels:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column("kernel", no_wrap=True)
    table.add_column("where", overflow="fold")
    missing = 0
    for kernel in kernels:
        found = find(kernel, capability)
        missing += found is None
        sign = Text("✓", "green") if found else Text("✗", "red")
        where = f"{found.origin}: {found.path.parent.parent}" if found else "missing"
        table.add_row(sign, Text(kernel.why), Text(where, style="dim"))
    Console(highlight=False, soft_wrap=True).print(table)
    if missing:
        remark("to make what is missing: semipd kernels build" if flashinfer_version() else NOT_INSTALLED)
        raise typer.Exit(exits.FAILED)


@kernels_app.command("build")
def build_kernels(
    model: Model = None,
    dtype: Dtype = "auto",
    arch: Arch = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Compilers at a time. [dim]default: what CPUs and memory allow[/]")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also those that are there.")] = False,
) -> None:
    """Compile the kernels that are missing: minutes for each, once. Needs nvcc and a C++ compiler, but no GPU.

    They go to ~/.cache/semipd/kernels, or where SEMIPD_KERNELS says; a server finds them there.
    """
    import time

    from semipd.cli.terminal import complain, messages
    from semipd.engine.flashinfer_build import build, find_tools
    from semipd.engine.flashinfer_kernels import KernelError, available

    kernels, capability = _wanted(model, dtype, arch)
    todo = [kernel for kernel in kernels if again or not available(kernel, capability)]
    console = messages()
    if kernels and not todo:
        console.print("All kernels are there.")
    if not todo:
        return
    began = time.monotonic()
    try:
        find_tools()  # before there is a bar
        with _bar(len(todo)) as told:
            build(todo, capability, jobs or _default_jobs(), told)
    except KernelError as error:
        complain(str(error))
        raise typer.Exit(exits.FAILED) from None
    except KeyboardInterrupt:
        complain("stopped; what is compiled is kept, and the next build goes on from there")
        raise typer.Exit(exits.INTERRUPTED) from None
    count = "1 kernel" if len(todo) == 1 else f"{len(todo)} kernels"
    console.print(f"{count} built in {time.monotonic() - began:.0f} s.")


def _wanted(model: Path | None, dtype: str, arch: str | None) -> tuple[list[Kernel], Capability]:
    """Ends the command where that can't be said; says so where nothing is wanted."""
    from semipd.cli.terminal import complain, messages
    from semipd.core.errors import StartError
    from semipd.engine.flashinfer_kernels import SHORT, USUAL_HEAD_DIMS, kernels_for, needed, parse_architecture

    try:
        capability = parse_architecture(arch) if arch else _capability()
        if capability is None:
            complain("no GPU here: name an architecture, such as --arch 9.0a")
            raise typer.Exit(exits.USAGE)
        if dtype not in ("auto", "float32", *SHORT):
            complain(f"--dtype: must be auto, float32, {' or '.join(SHORT)}; got {dtype!r}")
            raise typer.Exit(exits.USAGE)
        if model is None:
            kind = "bfloat16" if dtype == "auto" else dtype
            kernels = kernels_for(kind, USUAL_HEAD_DIMS, capability)
        else:
            from semipd.engine.loading import read_model_config

            config = read_model_config(model)
            kind = config.dtype if dtype == "auto" else dtype
            kernels = needed(config, kind, capability)
    except StartError as error:
        complain(str(error))
        raise typer.Exit(exits.USAGE) from None
    if not kernels:
        messages().print(f"No FlashInfer kernels are wanted for that in {kind}: semipd's own do it all.")
    return kernels, capability


def _capability() -> Capability | None:
    """Returns the compute capability of the first GPU; None: there is no GPU."""
    from semipd.cli.checkup.nvidia import survey_nvidia

    gpus = survey_nvidia().gpus
    return gpus[0].capability if gpus else None


def _default_jobs() -> int:
    """Returns the number of compilers to run: one a CPU, as far as memory suffices for each of them at its worst."""
    import os

    from semipd.memory.arenas import available_bytes

    return max(1, min(len(os.sched_getaffinity(0)), available_bytes() // (3 * 2**30)))


@contextmanager
def _bar(kernels: int) -> Iterator[Callable[[BuildProgress], None]]:
    """A progress bar over the kernels; what it gives is to be told of the progress."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from semipd.cli.terminal import messages

    count = TextColumn("{task.fields[built]} kernels")
    with Progress(TextColumn("{task.description}"), BarColumn(), count, TimeElapsedColumn(), console=messages()) as bar:
        task = bar.add_task("preparing", total=kernels, built=f"0/{kernels}")

        def show(at: BuildProgress) -> None:
            built = f"{at.done}/{at.kernels}"
            bar.update(task, description=at.kernel.why, completed=at.done + at.fraction, built=built)

        yield show
