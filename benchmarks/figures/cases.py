"""The cases that are compared: a policy with its options, under a trace, held to an SLO, at some rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from semipd.bench.traces import LOOSE, load_trace, write_trace

TRACES = ("chat", "mixed", "long")
SLOS = ("tight", "loose")

Rates = Mapping[tuple[str, str], tuple[float, ...]]
"""Rates by trace and SLO."""

RATES: Rates = {
    ("chat", "tight"): (56.0, 64.0, 73.0),
    ("mixed", "tight"): (25.0, 32.0, 42.0),
    ("long", "tight"): (6.8, 8.0, 9.5),
    ("chat", "loose"): (64.0, 73.0, 84.0),
    ("mixed", "loose"): (32.0, 42.0, 50.0),
    ("long", "loose"): (8.0, 9.5, 11.0),
}
"""Rates of a case that names none: from what vLLM reaches to the aim; loose from one rate further on."""

TINY_RATES: Rates = {(trace, slo): (2.0,) if trace == "long" else (4.0,) for trace in TRACES for slo in SLOS}


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy and its options."""

    policy: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        return " ".join([self.policy, *(f"{name}={value}" for name, value in self.options)])

    @property
    def server_options(self) -> str:
        """Returns the text that `figures.bench.Wanted.over` takes."""
        return ",".join([f"policy={self.policy}", *(f"{name}={value}" for name, value in self.options)])


@dataclass(frozen=True, slots=True)
class Case:
    """`slo` is tight or loose; `rates` ascend."""

    contender: Contender
    trace: str
    slo: str
    rates: tuple[float, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.contender.label} on {self.trace}, {self.slo}"


BUILT_IN = (
    Contender("fcfs"),
    Contender("static", (("prefill", "52"), ("decode", "48"))),
    Contender("static", (("mode", "turns"), ("chunk", "512"))),
    Contender("chunked", (("budget", "1024"),)),
    Contender("semi-pd"),
    Contender("adaptive"),
)


def contender(text: str) -> Contender:
    """Parses NAME,OPTION=VALUE,...; raises ValueError."""
    name, *options = text.split(",")
    if not name or "=" in name:
        raise ValueError(f"{text!r} does not begin with the name of a policy")
    pairs = [tuple(option.partition("=")[::2]) for option in options]
    for option, pair in zip(options, pairs, strict=True):
        if not all(pair):
            raise ValueError(f"{option!r} is not OPTION=VALUE")
    return Contender(name, tuple((key, value) for key, value in pairs))


def cases(text: str, rates: Rates) -> list[Case]:
    """Parses POLICY[:TRACE,...[:SLO,...[:RATE,...]]]; a part that is left out means all, and `rates`. Raises
    ValueError."""
    parts = [*text.split(":"), "", "", ""]
    if len(parts) > 7:
        raise ValueError(f"{text!r} is not POLICY:TRACE:SLO:RATES")
    who, traces, slos = contender(parts[0]), listed(parts[1], TRACES, "trace"), listed(parts[2], SLOS, "SLO")
    own = tuple(sorted({positive(rate) for rate in filter(None, parts[3].split(","))}))
    return [Case(who, trace, slo, own or rates[trace, slo]) for slo in slos for trace in traces]


def default_cases(rates: Rates, traces: Sequence[str] = TRACES, slos: Sequence[str] = SLOS) -> list[Case]:
    """Every built-in policy on every trace, the tight SLO first: a run that is cut short then has whole groups."""
    return [Case(who, trace, slo, rates[trace, slo]) for slo in slos for trace in traces for who in BUILT_IN]


def listed(text: str, known: Sequence[str], what: str) -> list[str]:
    names = [name for name in text.split(",") if name] or list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"no {what} is named {name!r}; there are {', '.join(known)}")
    return names


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{text!r} is not a number above 0")
    return value


def trace_for(trace: str, slo: str, folder: Path) -> str:
    """Returns what RunSettings.trace takes. Requests carry the SLO that they are held to, as a client's would, so
    policies that look at it know what is asked of them: the loose one needs a file, made in `folder`."""
    if slo == "tight":
        return trace
    path = folder / f"{trace}_{slo}.jsonl"
    if not path.exists():
        loosened = (
            replace(entry, ttft_slo_s=entry.ttft_slo_s * LOOSE, tpot_slo_s=entry.tpot_slo_s * LOOSE)
            for entry in load_trace(trace)
        )
        write_trace(loosened, path)
    return str(path)
