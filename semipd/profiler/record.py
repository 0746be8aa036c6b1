"""Records a profile: two processes of the engine under MPS, one a phase, told what to measure over their pipes.

This process needs neither torch nor CUDA. What the two do is in `semipd.engine.cuda.profiling`.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from semipd.bench.writable import ready_to_write
from semipd.coordinator.devices import ChosenDevice, choose_device, choose_mps
from semipd.coordinator.mps import PIPES, open_mps
from semipd.core.clock import SystemClock
from semipd.core.errors import CheckpointError, InputError, RunFailed, StartError
from semipd.core.model import ModelConfig, parse_model_config
from semipd.profiler.measurements import (
    MOST_TOKENS,
    MOST_TURN_TOKENS,
    Alternating,
    Beside,
    MixedPass,
    PassAlone,
    Recording,
    StepAlone,
    Task,
    Unfit,
    carry_out,
    tasks,
)
from semipd.profiles.profile import Buckets, Gpu, ModelShape
from semipd.wire.process import PARENT
from semipd.wire.sockets import private_folder

ENGINE = "semipd.engine.cuda.profiling"
OPEN_S = 120.0
"""For a process to import, open the device and fill the weights."""
ANSWER_S = 60.0
"""For one measurement."""
LEAD_S, SETTLE_S, MEASURE_S, TAIL_S = 0.1, 0.25, 0.8, 0.15
"""Side by side: until both begin, until both count, what counts, and what both go on for so that neither is alone."""
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
PREFILL_POOL_TOKENS = 16_384
MAX_ROWS = 512


class Side:
    """A process with one phase's engine. Raises RunFailed where it ends or does not answer."""

    def __init__(self, role: str, environment: Mapping[str, str], module: str = ENGINE) -> None:
        self._role = role
        self._process = subprocess.Popen(
            [sys.executable, "-m", "semipd.wire.child", module, role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, PARENT: str(os.getpid()), **environment},
        )
        self._partial = b""

    def tell(self, **message: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._ended() from None

    def hear(self, seconds: float) -> dict[str, Any]:
        """Its next answer. Raises Unfit where that is an error of its own."""
        assert self._process.stdout is not None
        out, until = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._partial:
            if not select.select([out], [], [], max(0.0, until - time.monotonic()))[0]:
                raise RunFailed(f"the {self._role} process did not answer within {seconds:.0f} s")
            found = os.read(out, 1 << 16)
            if not found:
                raise self._ended()
            self._partial += found
        line, _, self._partial = self._partial.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Unfit(answer["error"])
        return answer

    def ask(self, within_s: float = ANSWER_S, /, **message: Any) -> dict[str, Any]:
        self.tell(**message)
        return self.hear(within_s)

    def _ended(self) -> RunFailed:
        return RunFailed(f"the {self._role} process ended with code {self._process.wait(5.0)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class TwoSides:
    """A `Machine` of two processes."""

    def __init__(self, decode: Side, prefill: Side) -> None:
        self._decode, self._prefill = decode, prefill

    def step_alone(self, task: StepAlone) -> float:
        return float(self._decode.ask(do="alone", sms=task.sms, rows=task.rows, context=task.context)["ms"])

    def pass_alone(self, task: PassAlone) -> float:
        return float(self._prefill.ask(do="alone", sms=task.sms, tokens=task.tokens, start=task.start)["ms"])

    def mixed_pass(self, task: MixedPass) -> float:
        sizes = {"rows": task.rows, "context": task.context, "tokens": task.tokens, "start": task.start}
        return float(self._decode.ask(do="alone", sms=task.sms, **sizes)["ms"])

    def alternating(self, task: Alternating) -> tuple[float, float]:
        """One process does both: so neither waits for the other's to see that it is done."""
        answer = self._decode.ask(do="turns", rows=task.rows, context=task.context, tokens=task.tokens)
        return float(answer["step_ms"]), float(answer["pass_ms"])

    def buckets(self) -> Buckets:
        """To be asked when the measurements are over: which are of use is known by then."""
        found = self._decode.ask(do="buckets") | self._prefill.ask(do="buckets")
        return Buckets(**{kind: tuple(map(int, sizes)) for kind, sizes in found.items()})

    def beside(self, task: Beside) -> tuple[float, float]:
        whole_s = SETTLE_S + MEASURE_S + TAIL_S
        self._decode.ask(do="prepare", sms=task.decode_sms, rows=task.rows, context=task.context, seconds=whole_s)
        try:
            self._prefill.ask(do="prepare", sms=task.prefill_sms, tokens=task.tokens)
        except Unfit:
            self._decode.ask(do="forget")
            raise
        # One clock for all processes of a machine.
        start = time.monotonic() + LEAD_S
        window = {"start": start, "since": start + SETTLE_S, "until": start + SETTLE_S + MEASURE_S, "tail": TAIL_S}
        for side in (self._decode, self._prefill):
            side.tell(do="go", **window)
        # Both are heard, whatever the first says: an answer that stays in a pipe would be taken for the next one's.
        answers: list[float | Unfit] = []
        for side in (self._decode, self._prefill):
            try:
                answers.append(float(side.hear(ANSWER_S)["ms"]))
            except Unfit as error:
                answers.append(error)
        step, batch = answers
        if isinstance(step, Unfit):
            raise step
        if isinstance(batch, Unfit):
            raise batch
        return step, batch


def record(model: Path, out: Path, *, quick: bool, seconds: float, dtype: str, mps: str) -> None:
    """Writes the profile to `out` as it grows.

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
            prefill, decode = (stack.enter_context(Side(role, environment)) for role in ("prefill", "decode"))
            sms = open_both(decode, prefill, config, dtype, shape.max_context)
            assert device.gpu is not None
            recording = Recording(shape, Gpu(device.gpu.name, sms, device.gpu.memory_bytes))
            todo = tasks(sms, shape.max_context, quick=quick)
            show = stack.enter_context(progress_bar(len(todo)))

            def tell(task: Task, so_far: Recording) -> None:
                save(so_far, out)
                show(task, so_far)

            machine = TwoSides(decode, prefill)
            carry_out(todo, machine, recording, clock, until_s, tell)
            recording.buckets = machine.buckets()
    except KeyboardInterrupt:
        if recording is not None:
            save(recording, out)
        raise
    except RunFailed as error:
        if recording is None or not save(recording, out):
            raise
        print(f"{out}: incomplete: {error}", file=sys.stderr)
        return
    if not save(recording, out):
        raise RunFailed(f"too little was measured for a profile: {'; '.join(recording.left_out)}")
    print(f"{out}: {recording.done} of {len(todo)} measurements")
    for line in recording.left_out:
        print(f"  left out: {line}", file=sys.stderr)


def save(recording: Recording, out: Path) -> bool:
    """Whether there was enough for a profile. An interruption leaves the file as it was or as it is meant to be."""
    profile = recording.profile()
    if profile is None:
        return False
    draft = out.with_name(f".{out.name}.part")
    profile.save(draft)
    draft.replace(out)
    return True


def read_model(folder: Path, dtype: str) -> tuple[dict[str, Any], ModelShape]:
    """config.json as it is, and what the profile says of it. Raises InputError."""
    if dtype not in DTYPE_BYTES:
        raise InputError(f"--dtype must be one of {', '.join(DTYPE_BYTES)}, not {dtype}")
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        model: ModelConfig = parse_model_config(config)
    except OSError as error:
        raise InputError(f"{file}: can't be read: {error.strerror}") from error
    except (ValueError, CheckpointError) as error:
        raise InputError(f"{file}: {error}") from error
    size = DTYPE_BYTES[dtype]
    kv = 2 * model.layers * model.kv_heads * model.head_dim * size
    shape = ModelShape(folder.resolve().name, dtype, model.vocab_size, model.max_context, model.parameters * size, kv)
    return config, shape


@contextmanager
def shared_device(mps: str) -> Iterator[tuple[ChosenDevice, Mapping[str, str]]]:
    """The GPU, and the environment that makes a process a client of its MPS daemon."""
    try:
        device = choose_device("cuda")
        chosen = choose_mps(mps, device, shutil.which("nvidia-cuda-mps-control"), os.environ.get(PIPES))
        with private_folder() as folder:
            daemon, _ = open_mps(chosen, device, folder, SystemClock())
            with daemon:
                yield device, daemon.workers
    except StartError as error:
        raise InputError(str(error)) from error


def open_both(decode: Side, prefill: Side, config: Mapping[str, Any], dtype: str, max_context: int) -> int:
    """Opens prefill's engine first: decode's pool takes what is left. The device's SMs.

    Decode's does passes, too, where both alternate, in buffers for no more tokens than those have."""
    sms = 0
    for side, name, pool, rows, tokens in (
        (prefill, "prefill", PREFILL_POOL_TOKENS, 1, 8192),
        (decode, "decode", MOST_TOKENS + MAX_ROWS * 128, MAX_ROWS, MOST_TURN_TOKENS),
    ):
        sizes = {"pool_tokens": pool, "max_running": rows, "max_batch_tokens": min(tokens, max_context)}
        try:
            opened = side.ask(OPEN_S, do="open", config=config, dtype=dtype, **sizes)
        except Unfit as error:
            raise RunFailed(f"the {name} engine can't be opened: {error}") from error
        sms = int(opened["sms"])
    return sms


@contextmanager
def progress_bar(total: int) -> Iterator[Any]:
    """On standard error; silent where that is no terminal."""
    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f} measurements: {task.fields[said]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("", total=total, said="")
        yield lambda task, so_far: bar.update(shown, completed=so_far.done, said=str(task))
