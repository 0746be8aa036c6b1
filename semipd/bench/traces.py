"""Request traces: lengths and SLOs, one JSON object a line.

The three that ship (chat, mixed, long) are not stored but drawn: the generator below writes the published files byte
for byte. It uses nothing of `random` but `random()` and `getrandbits()` of a seeded Mersenne Twister, whose sequences
Python promises to keep, so the lengths are the same on any machine and version.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from random import Random

from semipd.bench.errors import InputError

ENTRIES = 2000
"""Lines in each of the traces that ship."""

LOOSE = 10 / 7.5
"""The loose SLO as a multiple of the tight one that a trace holds."""

SLO_SCALE = 7.5
ALONE_FIRST_TOKEN_S = 0.0065
ALONE_PROMPT_TOKEN_S = 2.3e-5
ALONE_TOKEN_S = 0.0049
"""The latency of a request alone on an H200 with Llama-3-8B in bf16; SLOs are SLO_SCALE times it."""


@dataclass(frozen=True, slots=True)
class TraceEntry:
    """One request: lengths in tokens, both at least 1, and its tight SLO in seconds.

    The other fields may be absent in a file; only the simulator plays them.
    """

    prompt_len: int
    output_len: int
    ttft_slo_s: float
    tpot_slo_s: float
    priority: int = 0
    """A request of a higher priority goes first where the policy, or a full pool, asks for it."""
    deadline_s: float | None = None
    """Seconds after its arrival at which the server ends it; None: it has no deadline."""
    cancel_after_s: float | None = None
    """Seconds after it was sent at which its client leaves; None: the client stays."""
    samples: int = 1
    """Answers to the prompt, each of `output_len` tokens."""


USUAL = {f.name: f.default for f in fields(TraceEntry) if f.default is not MISSING}
"""The fields that a file may leave out, with the values that they then have."""


def check_sendable(trace: Iterable[TraceEntry]) -> None:
    """Raises InputError where a request has more to it than lengths and an SLO: the load generator sends no more."""
    for entry in trace:
        for name, usual in USUAL.items():
            if getattr(entry, name) != usual:
                raise InputError(f"a request of the trace has a {name}, which `semipd simulate` plays, and no real run")


def read_trace(path: Path) -> list[TraceEntry]:
    """Raises InputError that names the file, the line and the field. An empty trace is an error too."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: the trace can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: the trace is not UTF-8 text") from error
    entries = [
        _entry(line, f"{path}, line {number}") for number, line in enumerate(text.splitlines(), 1) if line.strip()
    ]
    if not entries:
        raise InputError(f"{path}: the trace has no requests")
    return entries


def load_trace(name: str) -> list[TraceEntry]:
    """A trace that ships by its name, else a file. `./chat` is a file, `chat` is not."""
    if name in TRACES:
        return make_trace(name)
    path = Path(name)
    if not path.exists():
        raise InputError(f"{name}: no such trace file, nor a trace that ships ({', '.join(TRACES)})")
    return read_trace(path)


def make_trace(name: str) -> list[TraceEntry]:
    """A trace that ships, by its name."""
    try:
        draw, seed = TRACES[name]
    except KeyError:
        raise InputError(f"{name}: no such trace; there are {', '.join(TRACES)}") from None
    random = Random(seed)
    return [with_slo(*draw(random)) for _ in range(ENTRIES)]


def with_slo(prompt_len: int, output_len: int) -> TraceEntry:
    """The SLOs that the published traces give a request of these lengths."""
    ttft = SLO_SCALE * (ALONE_FIRST_TOKEN_S + prompt_len * ALONE_PROMPT_TOKEN_S)
    return TraceEntry(prompt_len, output_len, round(ttft, 4), round(SLO_SCALE * ALONE_TOKEN_S, 4))


def scaled(entries: Iterable[TraceEntry], factor: float) -> list[TraceEntry]:
    """All lengths times the factor, at least 1: for models whose context is too short. SLOs stay as they are."""
    return [
        replace(e, prompt_len=max(1, round(e.prompt_len * factor)), output_len=max(1, round(e.output_len * factor)))
        for e in entries
    ]


def write_trace(entries: Iterable[TraceEntry], path: Path) -> None:
    """Raises InputError where the file can't be written."""
    lines = (
        json.dumps({name: value for name, value in asdict(entry).items() if name not in USUAL or value != USUAL[name]})
        for entry in entries
    )
    try:
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: can't be written: {error.strerror}") from error


def _entry(line: str, where: str) -> TraceEntry:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON") from error
    if not isinstance(given, dict):
        raise InputError(f"{where}: not a JSON object")
    return TraceEntry(
        _length(given, "prompt_len", where),
        _length(given, "output_len", where),
        _seconds(given, "ttft_slo_s", where),
        _seconds(given, "tpot_slo_s", where),
        priority=_priority(given, where),
        deadline_s=_seconds(given, "deadline_s", where) if "deadline_s" in given else None,
        cancel_after_s=_seconds(given, "cancel_after_s", where) if "cancel_after_s" in given else None,
        samples=_length(given, "samples", where) if "samples" in given else 1,
    )


def _priority(given: Mapping[str, object], where: str) -> int:
    value = given.get("priority", 0)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{where}: priority must be a whole number, not {json.dumps(value)[:40]}")
    return value


def _length(given: Mapping[str, object], field: str, where: str) -> int:
    value = _field(given, field, where)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{where}: {field} must be a whole number of at least 1, not {json.dumps(value)[:40]}")
    return value


def _seconds(given: Mapping[str, object], field: str, where: str) -> float:
    value = _field(given, field, where)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{where}: {field} must be a number of seconds above 0, not {json.dumps(value)[:40]}")
    return float(value)


def _field(given: Mapping[str, object], field: str, where: str) -> object:
    if field not in given:
        raise InputError(f"{where}: {field} is missing")
    return given[field]


# The distributions


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Tokens, by median and mean before clipping."""

    median: float
    mean: float
    least: int
    most: int

    def draw(self, random: Random) -> int:
        sigma = math.sqrt(2 * math.log(self.mean / self.median))
        value = round(math.exp(math.log(self.median) + sigma * _standard_normal(random)))
        return min(self.most, max(self.least, value))


def _standard_normal(random: Random) -> float:
    """Kinderman and Monahan's ratio of uniforms (ACM TOMS 3, 1977), as `random.normalvariate` has it."""
    scale = 4 * math.exp(-0.5) / math.sqrt(2.0)
    while True:
        u1 = random.random()
        u2 = 1.0 - random.random()
        z = scale * (u1 - 0.5) / u2
        if z * z / 4.0 <= -math.log(u2):
            return z


def _uniform(random: Random, least: int, most: int) -> int:
    """Both ends included; by rejection, as `random.randint` does it."""
    span = most - least + 1
    while (drawn := random.getrandbits(span.bit_length())) >= span:
        pass
    return least + drawn


CHAT_PROMPT = LogNormal(median=120, mean=251, least=4, most=2048)
CHAT_OUTPUT = LogNormal(median=150, mean=220, least=1, most=1024)
LONG_PROMPT = LogNormal(median=3300, mean=4000, least=4, most=7600)
LONG_OUTPUT = LogNormal(median=70, mean=91, least=1, most=400)


def _chat(random: Random) -> tuple[int, int]:
    return CHAT_PROMPT.draw(random), CHAT_OUTPUT.draw(random)


def _long(random: Random) -> tuple[int, int]:
    return LONG_PROMPT.draw(random), LONG_OUTPUT.draw(random)


def _mixed(random: Random) -> tuple[int, int]:
    chat = random.random() < 0.95
    prompt_len = CHAT_PROMPT.draw(random) if chat else _uniform(random, 3500, 4500)
    return prompt_len, CHAT_OUTPUT.draw(random)


TRACES: Mapping[str, tuple[Callable[[Random], tuple[int, int]], int]] = {
    "chat": (_chat, 11),
    "long": (_long, 12),
    "mixed": (_mixed, 13),
}
"""The traces by name: how an entry is drawn, and the seed."""
