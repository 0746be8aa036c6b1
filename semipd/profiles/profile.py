"""A latency profile says how long prefill passes and decode steps take on one GPU, alone and side by side. It is a JSON
file.

A table holds measurements for one pair of `sms` (multiprocessors of the phase itself) and `other_sms` (those of the
other phase, which computes all the time meanwhile; 0: it is idle). `semipd.sim.execution_times` interpolates between
them, and `semipd.profiles.latency` fits a model to them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from semipd.core.errors import InputError
from semipd.core.plain import from_plain, read_json, to_plain, write_json
from semipd.core.provenance import Provenance

KIND = "semipd profile"
FORMAT = 1
SHIPPED = "h200-llama-3-8b"


@dataclass(frozen=True, slots=True)
class Source:
    """The origin of the figures."""

    recorded: bool
    """True if `semipd profile` measured every point."""
    how: str
    """The way in which they were got, in words: a simulated figure rests on it."""
    sources: tuple[str, ...]
    """The places that they were taken from, if they were not recorded."""
    made: Provenance | None
    """The origin of the recording; None: it was not recorded."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The model that was measured, as far as its times depend on it."""

    name: str
    dtype: str
    vocab_size: int
    max_context: int
    """Tokens, prompt and output together."""
    weight_bytes: int
    kv_token_bytes: int
    """Bytes of the keys and values of one token, over all layers."""


@dataclass(frozen=True, slots=True)
class ProfiledGpu:
    """The GPU that was measured."""

    name: str
    """The name that its driver gives it."""
    sms: int
    """Streaming multiprocessors."""
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Overheads:
    """Seconds that a token pays beside the device. These are constants of the server, not of the GPU."""

    arrive_s: float
    """The way from the client to the coordinator: gRPC, validation, tokenising."""
    turnaround_s: float
    """The way from a worker's answer, by the coordinator's plan, to the worker that receives it."""
    prepare_s: float
    """The way from a plan at the prefill worker to its pass, if nothing of it could be done beforehand."""
    deliver_s: float
    """The way from the coordinator's journal to the client: detokenising, gRPC."""
    handover_s: float
    """The gap between the end of one phase's pass and the beginning of the other's, where the phases take turns."""


@dataclass(frozen=True, slots=True)
class DecodePoint:
    """The time of one step of `rows` sequences that attend to `context` tokens each."""

    rows: int
    context: int
    ms: float


@dataclass(frozen=True, slots=True)
class DecodeTable:
    """The steps that were measured on `sms` SMs beside prefill on `other_sms` (0: idle)."""

    sms: int
    other_sms: int
    points: tuple[DecodePoint, ...]


@dataclass(frozen=True, slots=True)
class PrefillPoint:
    """The time of one pass over `tokens` tokens of one prompt, of which `start` tokens were computed before."""

    tokens: int
    start: int
    ms: float


@dataclass(frozen=True, slots=True)
class PrefillTable:
    """The passes that were measured on `sms` SMs beside decode on `other_sms` (0: idle)."""

    sms: int
    other_sms: int
    points: tuple[PrefillPoint, ...]


@dataclass(frozen=True, slots=True)
class MixedPoint:
    """The time of one mixed batch on all SMs, with nothing beside it: `rows` sequences that attend to `context` tokens
    each, and `tokens` tokens of a prompt of which `start` tokens were computed before."""

    rows: int
    context: int
    tokens: int
    start: int
    ms: float


@dataclass(frozen=True, slots=True)
class TurnsPoint:
    """The times of a decode step and of a prefill pass that alternate without a pause on all SMs: `rows` sequences that
    attend to `context` tokens each, and one prompt of `tokens` tokens."""

    rows: int
    context: int
    tokens: int
    step_ms: float
    pass_ms: float


@dataclass(frozen=True, slots=True)
class Buckets:
    """Sizes that captured passes are padded to, ascending. A pass of another size takes as long as one of the next
    larger size. Beyond the largest, or where there are none, nothing is padded."""

    decode: tuple[int, ...] = ()
    """Rows of a decode step."""
    prefill: tuple[int, ...] = ()
    """Tokens of a prefill pass."""
    mixed: tuple[int, ...] = ()
    """Rows and tokens of a mixed batch together."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile as its file has it."""

    source: Source
    model: ModelShape
    gpu: ProfiledGpu
    overheads: Overheads
    decode: tuple[DecodeTable, ...]
    prefill: tuple[PrefillTable, ...]
    mixed: tuple[MixedPoint, ...] = ()
    """Empty: not measured, so no mixed batches can be simulated. The field may be missing in a file."""
    turns: tuple[TurnsPoint, ...] = ()
    """Empty: not measured, so each takes as long as alone. The field may be missing in a file."""
    buckets: Buckets = Buckets()
    """The field may be missing in a file."""
    kind: str = KIND
    format: int = FORMAT

    def save(self, path: Path) -> None:
        """Writes the file. Raises InputError where it can't be written."""
        write_json(self, path)


def read_profile(path: Path) -> Profile:
    """Returns the profile of a file. Raises InputError, naming file and field, where it is no profile of this version,
    or where something of it is missing."""
    given = read_json(path)
    if not isinstance(given, dict) or given.get("kind") != KIND:
        raise InputError(f"{path}: not a profile of `semipd profile`")
    if given.get("format") != FORMAT:
        raise InputError(f"{path}: format: this version reads {FORMAT}, not {given.get('format')!r}")
    given = {"mixed": [], "turns": [], "buckets": to_plain(Buckets()), **given}  # files from before may have none
    profile = from_plain(Profile, given, str(path))
    _refuse_unknown(given, to_plain(profile), str(path))
    check(profile, str(path))
    return profile


def load_profile(name: str) -> Profile:
    """Returns the profile that ships under this name, else that of the file. Raises InputError where there is none."""
    if name in shipped():
        return read_profile(Path(str(_folder().joinpath(f"{name}.json"))))
    path = Path(name)
    if not path.exists():
        raise InputError(f"{name}: no such profile file, nor a profile that ships ({', '.join(shipped())})")
    return read_profile(path)


def shipped() -> list[str]:
    """Returns the names of the profiles that ship."""
    return sorted(entry.name.removesuffix(".json") for entry in _folder().iterdir() if entry.name.endswith(".json"))


def _folder() -> Any:
    return files("semipd.profiles").joinpath("shipped")


def _refuse_unknown(given: Any, known: Any, where: str) -> None:
    """Raises InputError for a field that no profile has: a misspelt one must not be dropped in silence."""
    if isinstance(given, dict) and isinstance(known, dict):
        for name, value in given.items():
            if name not in known:
                raise InputError(f"{where}: {name}: no such field")
            _refuse_unknown(value, known[name], f"{where}: {name}")
    elif isinstance(given, list) and isinstance(known, list):
        for at, (mine, its) in enumerate(zip(given, known, strict=True)):
            _refuse_unknown(mine, its, f"{where}[{at}]")


# --- what must hold ---------------------------------------------------------------------------------------------------


def check(profile: Profile, where: str) -> None:
    """Raises InputError, naming the field, where times can't be read off these tables."""
    for part, names in (
        ("model", ("vocab_size", "max_context", "weight_bytes", "kv_token_bytes")),
        ("gpu", ("sms", "memory_bytes")),
    ):
        for name in names:
            if getattr(getattr(profile, part), name) < 1:
                raise InputError(f"{where}: {part}: {name}: must be above 0")
    for name in Overheads.__dataclass_fields__:
        if not 0 <= getattr(profile.overheads, name) < 1:
            raise InputError(f"{where}: overheads: {name}: must be 0 to 1 second")
    _check_tables(profile.decode, profile.gpu.sms, f"{where}: decode", lambda p: (p.rows, p.context))
    _check_tables(profile.prefill, profile.gpu.sms, f"{where}: prefill", lambda p: (p.tokens, p.start))
    for at, step in enumerate(profile.decode):
        _positive(f"{where}: decode[{at}]", "rows", (p.rows for p in step.points))
        _positive(f"{where}: decode[{at}]", "context", (p.context for p in step.points))
    for at, batch in enumerate(profile.prefill):
        _positive(f"{where}: prefill[{at}]", "tokens", (p.tokens for p in batch.points))
        if any(p.start < 0 for p in batch.points):
            raise InputError(f"{where}: prefill[{at}]: points: start: must be at least 0")
    _check_mixed(profile.mixed, f"{where}: mixed")
    _check_turns(profile.turns, f"{where}: turns")
    _check_buckets(profile.buckets, f"{where}: buckets")
    _check_references(profile, where)


def _check_mixed(points: Sequence[MixedPoint], where: str) -> None:
    for name in ("rows", "context", "tokens", "ms"):
        _positive(where, name, (getattr(p, name) for p in points))
    if any(p.start < 0 for p in points):
        raise InputError(f"{where}: points: start: must be at least 0")
    if len({(p.rows, p.context, p.tokens, p.start) for p in points}) < len(points):
        raise InputError(f"{where}: points: one is there twice")


def _check_turns(points: Sequence[TurnsPoint], where: str) -> None:
    for name in TurnsPoint.__dataclass_fields__:
        _positive(where, name, (getattr(p, name) for p in points))
    if len({(p.rows, p.context, p.tokens) for p in points}) < len(points):
        raise InputError(f"{where}: points: one is there twice")


def _check_buckets(buckets: Buckets, where: str) -> None:
    for name in Buckets.__dataclass_fields__:
        sizes = getattr(buckets, name)
        if any(size < 1 for size in sizes) or any(a >= b for a, b in pairwise(sizes)):
            raise InputError(f"{where}: {name}: must be above 0 and ascend")


def _check_references(profile: Profile, where: str) -> None:
    """Checks what is measured of each phase alone on the whole device: all else is relative to that."""
    steps = next(t for t in profile.decode if (t.sms, t.other_sms) == (profile.gpu.sms, 0)).points
    rows = [p.rows for p in steps]
    if len(set(rows)) < 2:
        raise InputError(f"{where}: decode: alone on all SMs there must be two numbers of rows or more")
    if len(set(rows)) == len(rows):
        raise InputError(f"{where}: decode: alone on all SMs one number of rows must be there at two contexts or more")
    passes = next(t for t in profile.prefill if (t.sms, t.other_sms) == (profile.gpu.sms, 0)).points
    if len({p.tokens for p in passes if p.start == 0}) < 2:
        raise InputError(f"{where}: prefill: alone on all SMs there must be two numbers of tokens with start 0 or more")
    if all(p.start == 0 for p in passes):
        raise InputError(f"{where}: prefill: alone on all SMs there must be a point with a start above 0")


P = TypeVar("P", DecodePoint, PrefillPoint)


def _check_tables(tables: Sequence[Any], sms: int, where: str, key: Callable[[Any], Hashable]) -> None:
    pairs = [(table.sms, table.other_sms) for table in tables]
    if (sms, 0) not in pairs:
        raise InputError(f"{where}: there must be a table of all {sms} SMs with other_sms 0")
    if not any(other for _, other in pairs):
        raise InputError(f"{where}: there must be a table with other_sms above 0 (side by side)")
    for at, table in enumerate(tables):
        here = f"{where}[{at}]"
        if pairs.index((table.sms, table.other_sms)) != at:
            raise InputError(f"{here}: a second table of sms {table.sms} and other_sms {table.other_sms}")
        if not 0 < table.sms <= sms:
            raise InputError(f"{here}: sms: must be 1 to {sms}, not {table.sms}")
        if not 0 <= table.other_sms <= sms:
            raise InputError(f"{here}: other_sms: must be 0 to {sms}, not {table.other_sms}")
        if not table.points:
            raise InputError(f"{here}: points: there are none")
        _positive(here, "ms", (p.ms for p in table.points))
        seen = [key(p) for p in table.points]
        if len(set(seen)) < len(seen):
            raise InputError(f"{here}: points: one is there twice")


def _positive(where: str, name: str, values: Iterable[float]) -> None:
    for at, value in enumerate(values):
        if not 0 < value < float("inf"):
            raise InputError(f"{where}: points[{at}]: {name}: must be above 0, not {value}")
