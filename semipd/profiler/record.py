"""Records a profile of this machine's GPU, and leaves it where the next start of a server finds it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from semipd.bench.writable import ready_to_write
from semipd.coordinator.devices import ChosenDevice, choose_device, choose_mps
from semipd.coordinator.mps import PIPES, open_mps
from semipd.core.clock import SystemClock
from semipd.core.errors import InputError, RunFailed, StartError
from semipd.profiler.measurements import Measurement, schedule
from semipd.profiler.phase_process import PhaseProcess, TwoProcesses, open_both
from semipd.profiler.recording import Recording, carry_out
from semipd.profiles.cache import cache_file, keep
from semipd.profiles.profile import ModelShape, ProfiledGpu
from semipd.profiles.shape import ITEM_BYTES, model_shape, read_config
from semipd.wire.sockets import private_folder


def record(model: Path, out: Path | None, *, quick: bool, seconds: float, dtype: str, mps: str) -> None:
    """Writes the profile to `out` as it grows, and to the cache of this machine: at the end, or as it grows if there is
    no `out`.

    Raises InputError where the model, an option or this machine won't do, RunFailed where there is not enough for a
    profile in the end, KeyboardInterrupt after saving what there is.
    """
    ready_to_write(out, None)
    config, shape = read_model(model, dtype)
    if mps not in ("own", "adopt"):
        raise InputError(f"--mps must be own or adopt, not {mps}")
    clock = SystemClock()
    until_s = clock.now() + seconds
    recording: Recording | None = None
    try:
        with ExitStack() as stack:
            device, environment = stack.enter_context(shared_device(mps))
            prefill, decode = (stack.enter_context(PhaseProcess(role, environment)) for role in ("prefill", "decode"))
            sms = open_both(decode, prefill, config, dtype, shape.max_context)
            assert device.gpu is not None
            recording = Recording(shape, ProfiledGpu(device.gpu.name, sms, device.gpu.memory_bytes))
            todo = schedule(sms, shape.max_context, quick=quick)
            show = stack.enter_context(progress_bar(len(todo)))

            def announce(asked: Measurement, so_far: Recording) -> None:
                save(so_far, out)
                show(asked, so_far)

            machine = TwoProcesses(decode, prefill)
            carry_out(todo, machine, recording, clock, until_s, announce)
            recording.buckets = machine.buckets()
    except KeyboardInterrupt:
        if recording is not None:
            save(recording, out)
        raise
    except RunFailed as error:
        saved = save(recording, out) if recording is not None else None
        if saved is None:
            raise
        print(f"{saved}: incomplete: {error}", file=sys.stderr)
        return
    saved = save(recording, out)
    if saved is None:
        raise RunFailed(f"too little was measured for a profile: {'; '.join(recording.left_out)}")
    print(f"{saved}: {recording.done} of {len(todo)} measurements")
    for line in recording.left_out:
        print(f"  left out: {line}", file=sys.stderr)
    leave_for_servers(recording, out)


def leave_for_servers(recording: Recording, out: Path | None) -> None:
    """Puts a whole recording into the cache, and says so. A cache that can't be written to is a warning: the profile is
    in `out`."""
    if out is not None:
        try:
            save(recording, None)
        except InputError as error:
            print(f"warning: servers on this machine won't find the profile: {error}", file=sys.stderr)
            return
    print(f"servers of this model on this GPU use it: {cache_file(recording.gpu, recording.model)}")


def save(recording: Recording, out: Path | None) -> Path | None:
    """Writes what there is and returns the file; None: it is not enough for a profile.

    `out`: None is the cache. An interruption leaves the file as it was, or as it is meant to be.
    """
    profile = recording.profile()
    if profile is None:
        return None
    if out is None:
        return keep(profile)
    draft = out.with_name(f".{out.name}.part")
    profile.save(draft)
    return draft.replace(out)


def read_model(folder: Path, dtype: str) -> tuple[dict[str, Any], ModelShape]:
    """Returns config.json as it is, and the shape that the profile is of. Raises InputError."""
    if dtype not in ITEM_BYTES:
        raise InputError(f"--dtype must be one of {', '.join(ITEM_BYTES)}, not {dtype}")
    config, model = read_config(folder)
    return config, model_shape(folder.resolve().name, model, dtype)


@contextmanager
def shared_device(mps: str) -> Iterator[tuple[ChosenDevice, Mapping[str, str]]]:
    """Yields the GPU, and the environment that makes a process a client of its MPS daemon."""
    try:
        device = choose_device("cuda")
        choice = choose_mps(mps, device, shutil.which("nvidia-cuda-mps-control"), os.environ.get(PIPES))
        with private_folder() as folder:
            daemon, _ = open_mps(choice, device, folder, SystemClock())
            with daemon:
                yield device, daemon.workers
    except StartError as error:
        raise InputError(str(error)) from error


@contextmanager
def progress_bar(total: int) -> Iterator[Any]:
    """Yields a function that shows the present measurement on standard error; silent where that is no terminal."""
    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f} measurements: {task.fields[said]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("", total=total, said="")
        yield lambda asked, so_far: bar.update(shown, completed=so_far.done, said=str(asked))
