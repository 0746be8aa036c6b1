"""Turns frozen dataclasses into JSON and back, by their annotations."""

from __future__ import annotations

import json
import types
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from semipd.core.errors import InputError

T = TypeVar("T")

DIGITS = 6
"""Decimal digits of seconds: microseconds are finer than any clock here."""


def to_plain(value: Any) -> Any:
    """Turns a frozen dataclass into what json can write: objects, lists, strings and numbers."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    return value


def from_plain(kind: type[T], given: Any, source: str) -> T:
    """Makes a `kind` of what json read: a dataclass of scalars, enums, tuples, dicts, optionals and other dataclasses.

    Raises InputError that names the source and the field if the shape is not that of `kind`.
    """
    value: T = _value(kind, given, source)
    return value


def read_json(path: Path) -> Any:
    """Reads a file. Raises InputError if it can't be read or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON") from error


def write_json(value: Any, path: Path) -> None:
    """Writes a dataclass as JSON. Raises InputError if the file can't be written."""
    text = json.dumps(to_plain(value), indent=1)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: can't be written: {error.strerror}") from error


def _value(kind: Any, given: Any, where: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        inner = next(k for k in get_args(kind) if k is not type(None))
        return None if given is None else _value(inner, given, where)
    if is_dataclass(kind):
        return _object(kind, given, where)
    if origin is tuple:
        return _tuple(get_args(kind)[0], _of(list, given, where), where)
    if origin is dict:
        return {k: _value(get_args(kind)[1], v, f"{where}.{k}") for k, v in _of(dict, given, where).items()}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum(kind, given, where)
    if kind is float and isinstance(given, int) and not isinstance(given, bool):
        given = float(given)
    return _of(kind, given, where)


def _enum(kind: type[Enum], given: Any, where: str) -> Enum:
    try:
        return kind(given)
    except ValueError as error:
        raise InputError(f"{where}: unknown value") from error


def _tuple(kind: Any, given: list[Any], where: str) -> tuple[Any, ...]:
    if kind in (float, int):
        return _numbers(kind, given, where)
    return tuple(_value(kind, v, f"{where}[{i}]") for i, v in enumerate(given))


def _numbers(kind: type, given: list[Any], where: str) -> tuple[Any, ...]:
    """Checks and converts all at once: a run has millions of gaps, and a call for each would take long."""
    allowed = {int, kind}
    if not allowed.issuperset(map(type, given)):
        raise InputError(f"{where}: not all of the expected type ({kind.__name__})")
    return tuple(map(kind, given))


def _object(kind: Any, given: Any, where: str) -> Any:
    values = _of(dict, given, where)
    hints = _hints(kind)
    missing = [f.name for f in fields(kind) if f.name not in values]
    if missing:
        raise InputError(f"{where}: {missing[0]} is missing")
    return kind(**{f.name: _value(hints[f.name], values[f.name], f"{where}: {f.name}") for f in fields(kind)})


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _of(kind: type, given: Any, where: str) -> Any:
    if not isinstance(given, kind) or (isinstance(given, bool) and kind is not bool):
        raise InputError(f"{where}: not of the expected type ({kind.__name__})")
    return given
