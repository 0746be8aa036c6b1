"""Measures one phase's engine for `semipd profile`, in a process of its own: alone, or beside another such process.

usage: python -m semipd.engine.cuda.profiling prefill|decode      (started by semipd.profiler.record)

Messages are JSON objects, one a line. Questions come on standard input, answers go to standard output.

    {"do": "open", "config": {...}, "dtype", "max_batch_tokens", "max_running", "pool_tokens"}     -> {"sms"}
    {"do": "alone", "sms", "rows", "context"} or {..., "tokens", "start"}                          -> {"ms"}
    {"do": "alone", "sms", "rows", "context", "tokens", "start"}: a decode step with a prompt       -> {"ms"}
    {"do": "turns", "rows", "context", "tokens"}: in the decode process, by turns         -> {"step_ms", "pass_ms"}
    {"do": "prepare", "sms", "rows", "context", "seconds"} or {..., "tokens"}                      -> {}
    {"do": "go", "start", "since", "until", "tail"}: times of time.monotonic()                     -> {"ms"}
    {"do": "forget"}: forgets what was prepared                                                    -> {}
    {"do": "buckets"}: the sizes that passes are padded to, by kind of pass                        -> {"decode": [...]}

A question that can't be answered gets {"error"}. The process ends when its input does.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from statistics import median
from typing import Any, Protocol

import torch

from semipd.core.model import parse_model_config
from semipd.core.sms import decode_choices, prefill_choices
from semipd.engine.cuda.bench import (
    any_pages,
    bench_batch,
    capture_pass,
    capture_step,
    decode_step_ms,
    empty_batch,
    fill_batch,
    mixed_step_ms,
    open_engine,
    prefill_ms,
    prompt_item,
    steps_within,
    turns_ms,
)
from semipd.engine.cuda.engine import CudaEngine
from semipd.engine.cuda.streams import SmSide
from semipd.engine.engine import PrefillItem
from semipd.engine.pulse import SilentPulse

FEWEST = 3
"""The least number of passes within the time that counts, for a median."""


class MeasuredPhase(Protocol):
    """The measurements of this process's phase."""

    def alone(self, asked: dict[str, Any]) -> float:
        """Returns the time of a pass or step in ms."""

    def turns(self, asked: dict[str, Any]) -> tuple[float, float]:
        """Returns the times of a decode step and of a prefill pass in ms. Raises ValueError where this phase is
        prefill."""

    def prepare(self, asked: dict[str, Any]) -> None: ...

    def go(self, until_s: float) -> list[float]:
        """Runs what was prepared until then, and returns the times at which passes ended, in seconds."""

    def forget(self) -> None: ...

    def buckets(self) -> dict[str, list[int]]:
        """Returns the sizes that captured passes are padded to: rows of "decode", tokens of "prefill", both of
        "mixed"."""


class DecodeMeasurements:
    def __init__(self, engine: CudaEngine) -> None:
        self._engine = engine

    def alone(self, asked: dict[str, Any]) -> float:
        rows, context, sms = asked["rows"], asked["context"], asked["sms"]
        if "tokens" in asked:
            return mixed_step_ms(self._engine, rows, context, asked["tokens"], sms=sms, start=asked["start"])
        return decode_step_ms(self._engine, rows, context, sms=sms)

    def turns(self, asked: dict[str, Any]) -> tuple[float, float]:
        return turns_ms(self._engine, asked["rows"], asked["context"], asked["tokens"])

    def prepare(self, asked: dict[str, Any]) -> None:
        engine, rows, context = self._engine, asked["rows"], asked["context"]
        steps = steps_within(engine, rows, context, asked["sms"], asked["seconds"])
        first = max(1, context - steps // 2)  # grows to about `context` in the middle of the run
        batch, _ = fill_batch(engine, rows, first, first + steps)
        engine.use_sms(asked["sms"])
        capture_step(engine, batch, rows)
        torch.cuda.synchronize()

    def go(self, until_s: float) -> list[float]:
        batch, ends = bench_batch(self._engine), []
        while time.monotonic() < until_s:
            if batch.step(SilentPulse()):  # returns the outcomes of the step before, when that is done
                ends.append(time.monotonic())
        batch.drain(SilentPulse())
        return ends

    def forget(self) -> None:
        empty_batch(self._engine)

    def buckets(self) -> dict[str, list[int]]:
        batch = bench_batch(self._engine)
        found = {"decode": batch.graphs.useful}
        return found | ({"mixed": batch.mixed.graphs.useful} if batch.mixed is not None else {})


class PrefillMeasurements:
    def __init__(self, engine: CudaEngine) -> None:
        self._engine = engine
        self._item: PrefillItem | None = None

    def alone(self, asked: dict[str, Any]) -> float:
        return prefill_ms(self._engine, asked["tokens"], sms=asked["sms"], start=asked["start"])

    def turns(self, asked: dict[str, Any]) -> tuple[float, float]:
        raise ValueError("turns are measured where decode is")

    def prepare(self, asked: dict[str, Any]) -> None:
        engine, tokens = self._engine, asked["tokens"]
        self._item = prompt_item(engine, tokens, 0, any_pages(engine, tokens))
        engine.use_sms(asked["sms"])
        capture_pass(engine, tokens)
        engine.begin_prefill([self._item]).finish(SilentPulse())

    def go(self, until_s: float) -> list[float]:
        """Runs passes one ahead of the device, as the worker does."""
        assert self._item is not None
        pending, ends = deque[Any](), []
        while time.monotonic() < until_s:
            pending.append(self._engine.begin_prefill([self._item]))
            if len(pending) > 1:
                pending.popleft().finish(SilentPulse())
                ends.append(time.monotonic())
        for one in pending:
            one.finish(SilentPulse())
        return ends

    def forget(self) -> None:
        self._item = None
        self._engine.use_sms(0)

    def buckets(self) -> dict[str, list[int]]:
        return {"prefill": self._engine.open_prefill().graphs.useful}


def open_phase(role: str, asked: dict[str, Any]) -> AbstractContextManager[CudaEngine]:
    total = torch.cuda.get_device_properties(0).multi_processor_count
    return open_engine(
        parse_model_config(asked["config"]),
        max_running=asked["max_running"],
        max_batch_tokens=asked["max_batch_tokens"],
        dtype=asked["dtype"],
        pool_tokens=asked["pool_tokens"],
        side=SmSide.FIRST if role == "decode" else SmSide.LAST,
        sms_choices=decode_choices(total) if role == "decode" else prefill_choices(total),
    )


def between_ms(ends: Sequence[float], since_s: float, until_s: float) -> float:
    """Returns the median time from one end to the next, in ms, between two times in seconds.

    Raises ValueError where there are too few ends.
    """
    counted = [1e3 * (b - a) for a, b in pairwise(ends) if a >= since_s and b <= until_s]
    if len(counted) < FEWEST:
        raise ValueError(f"only {len(counted)} passes ended within {until_s - since_s:.1f} s")
    return median(counted)


def answer(phase: MeasuredPhase, asked: dict[str, Any]) -> dict[str, Any]:
    """Answers a question. Raises ValueError for what can't be done, and torch.OutOfMemoryError."""
    match asked["do"]:
        case "alone":
            return {"ms": phase.alone(asked)}
        case "turns":
            step_ms, pass_ms = phase.turns(asked)
            return {"step_ms": step_ms, "pass_ms": pass_ms}
        case "prepare":
            try:
                phase.prepare(asked)
            except (ValueError, torch.OutOfMemoryError):
                phase.forget()
                raise
            return {}
        case "go":
            time.sleep(max(0.0, asked["start"] - time.monotonic()))
            try:
                ends = phase.go(asked["until"] + asked["tail"])
            finally:
                phase.forget()
            return {"ms": between_ms(ends, asked["since"], asked["until"])}
        case "forget":
            phase.forget()
            return {}
        case "buckets":
            return phase.buckets()
    raise ValueError(f"{asked['do']!r} is nothing that can be done here")


def main() -> None:
    role = sys.argv[1]
    out, sys.stdout = sys.stdout, sys.stderr  # so that no library prints between the answers

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    asked = json.loads(sys.stdin.readline())
    with open_phase(role, asked) as engine:
        phase: MeasuredPhase = DecodeMeasurements(engine) if role == "decode" else PrefillMeasurements(engine)
        say({"sms": engine.streams.all})
        for line in sys.stdin:
            try:
                say(answer(phase, json.loads(line)))
            except (ValueError, torch.OutOfMemoryError) as error:
                say({"error": f"{type(error).__name__}: {error}"[:300]})


if __name__ == "__main__":
    main()
