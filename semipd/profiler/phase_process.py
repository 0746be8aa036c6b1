"""Two processes of the engine, one for each phase, that measure what they are told over their pipes.

What they do is in `semipd.engine.cuda.profiling`. This side needs neither torch nor CUDA.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from semipd.core.errors import RunFailed
from semipd.profiler.measurements import (
    MOST_TOKENS,
    MOST_TURN_TOKENS,
    Alternating,
    Beside,
    MixedPass,
    PassAlone,
    StepAlone,
)
from semipd.profiler.recording import Unfit
from semipd.profiles.profile import Buckets
from semipd.wire.process import PARENT

ENGINE = "semipd.engine.cuda.profiling"
OPEN_S = 120.0
"""Seconds that a process has to import, to open the device and to fill the weights."""
ANSWER_S = 60.0
"""Seconds that a process has for one measurement."""
LEAD_S, SETTLE_S, MEASURE_S, TAIL_S = 0.1, 0.25, 0.8, 0.15
"""Seconds side by side: until both begin, until both count, what counts, and what both go on for so that neither is
alone."""
PREFILL_POOL_TOKENS = 16_384
MAX_ROWS = 512


class PhaseProcess:
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

    def send(self, **message: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._ended() from None

    def receive(self, seconds: float) -> dict[str, Any]:
        """Returns its next answer. Raises Unfit where that is an error of its own."""
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
        self.send(**message)
        return self.receive(within_s)

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


class TwoProcesses:
    """A `Machine` of two processes."""

    def __init__(self, decode: PhaseProcess, prefill: PhaseProcess) -> None:
        self._decode, self._prefill = decode, prefill

    def step_alone(self, asked: StepAlone) -> float:
        return float(self._decode.ask(do="alone", sms=asked.sms, rows=asked.rows, context=asked.context)["ms"])

    def pass_alone(self, asked: PassAlone) -> float:
        return float(self._prefill.ask(do="alone", sms=asked.sms, tokens=asked.tokens, start=asked.start)["ms"])

    def mixed_pass(self, asked: MixedPass) -> float:
        sizes = {"rows": asked.rows, "context": asked.context, "tokens": asked.tokens, "start": asked.start}
        return float(self._decode.ask(do="alone", sms=asked.sms, **sizes)["ms"])

    def alternating(self, asked: Alternating) -> tuple[float, float]:
        """Measures in one process: with two, each would wait until it sees that the other is done."""
        answer = self._decode.ask(do="turns", rows=asked.rows, context=asked.context, tokens=asked.tokens)
        return float(answer["step_ms"]), float(answer["pass_ms"])

    def buckets(self) -> Buckets:
        """Returns the sizes that are of use, which is known when the measurements are over."""
        found = self._decode.ask(do="buckets") | self._prefill.ask(do="buckets")
        return Buckets(**{kind: tuple(map(int, sizes)) for kind, sizes in found.items()})

    def beside(self, asked: Beside) -> tuple[float, float]:
        whole_s = SETTLE_S + MEASURE_S + TAIL_S
        self._decode.ask(do="prepare", sms=asked.decode_sms, rows=asked.rows, context=asked.context, seconds=whole_s)
        try:
            self._prefill.ask(do="prepare", sms=asked.prefill_sms, tokens=asked.tokens)
        except Unfit:
            self._decode.ask(do="forget")
            raise
        # One clock for all processes of a machine.
        start = time.monotonic() + LEAD_S
        window = {"start": start, "since": start + SETTLE_S, "until": start + SETTLE_S + MEASURE_S, "tail": TAIL_S}
        for process in (self._decode, self._prefill):
            process.send(do="go", **window)
        # Both answers are read, whatever the first one is: one that stays in a pipe would be taken for the next one's.
        answers: list[float | Unfit] = []
        for process in (self._decode, self._prefill):
            try:
                answers.append(float(process.receive(ANSWER_S)["ms"]))
            except Unfit as error:
                answers.append(error)
        step, batch = answers
        if isinstance(step, Unfit):
            raise step
        if isinstance(batch, Unfit):
            raise batch
        return step, batch


def open_both(
    decode: PhaseProcess, prefill: PhaseProcess, config: Mapping[str, Any], dtype: str, max_context: int
) -> int:
    """Opens both engines and returns the device's SMs. Raises RunFailed where one can't be opened.

    Prefill's is first, because decode's pool takes what is left. Decode's makes passes, too, where both alternate, in
    buffers for no more tokens than those have.
    """
    sms = 0
    for process, name, pool, rows, tokens in (
        (prefill, "prefill", PREFILL_POOL_TOKENS, 1, 8192),
        (decode, "decode", MOST_TOKENS + MAX_ROWS * 128, MAX_ROWS, MOST_TURN_TOKENS),
    ):
        sizes = {"pool_tokens": pool, "max_running": rows, "max_batch_tokens": min(tokens, max_context)}
        try:
            opened = process.ask(OPEN_S, do="open", config=config, dtype=dtype, **sizes)
        except Unfit as error:
            raise RunFailed(f"the {name} engine can't be opened: {error}") from error
        sms = int(opened["sms"])
    return sms
