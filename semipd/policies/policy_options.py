"""Typed options of a policy: the fields of a frozen dataclass, each with a default, bounds, a unit and a help text."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

from semipd.core.errors import ConfigError

T = TypeVar("T")

_BOUNDS = "semipd.option"


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Everything that `option` was given, less the default."""

    help: str
    unit: str
    above: float | None
    low: float | None
    high: float | None
    choices: tuple[str, ...]


def option(
    default: T,
    help: str,
    *,
    unit: str = "",
    above: float | None = None,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
) -> T:
    """Declares a field of a `PolicyOptions`: its default, one sentence on what it does, and what values it may have.

    A number must be greater than `above`, at least `low` and at most `high`, where given. A text must be one of
    `choices`, where given; a field of type `Literal["a", "b"]` has its choices already. `unit` is for the reader.
    """
    bounds = _Bounds(help, unit, above, low, high, tuple(choices))
    return field(default=default, metadata={_BOUNDS: bounds})


@dataclass(frozen=True, slots=True)
class PolicyOption:
    """One option of a policy, as `semipd policies show` lists it and as the registry reads it."""

    name: str
    default: Any
    """None: without the option something else decides, as `help` says."""
    kind: type
    """int, float, bool or str."""
    optional: bool
    """None is allowed, too."""
    help: str
    unit: str = ""
    above: float | None = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """The values that it may have, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[self.kind]
        if self.above is not None:
            words += f" above {self.above:g}"
        if self.low is not None:
            words += f", at least {self.low:g}"
        if self.high is not None:
            words += f", at most {self.high:g}"
        return words

    def read(self, text: str) -> Any:
        """Returns the value that a user wrote as text. Raises ConfigError, which says what is allowed."""
        value: Any = text
        if self.kind is int:
            value = int(text) if re.fullmatch(r"\s*[+-]?\d+\s*", text) else None
        elif self.kind is float:
            try:
                value = float(text)
            except ValueError:
                value = None
        elif self.kind is bool:
            value = {"true": True, "false": False}.get(text.strip().lower())
        if value is None or not self._fits(value):
            raise self._refusal(text)
        return value

    def check(self, value: Any) -> None:
        """Raises ConfigError where a value has the wrong type or is out of bounds."""
        if not (value is None and self.optional) and not self._fits(value):
            raise self._refusal(value)

    def _fits(self, value: Any) -> bool:
        if self.kind in {str, bool}:
            return isinstance(value, self.kind) and (not self.choices or value in self.choices)
        if isinstance(value, bool) or not isinstance(value, int if self.kind is int else (int, float)):
            return False
        return (
            math.isfinite(value)
            and (self.above is None or value > self.above)
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
        )

    def _refusal(self, value: Any) -> ConfigError:
        return ConfigError(f"option {self.name}: must be {self.allowed}; got {value!r}")


@dataclass_transform(frozen_default=True, kw_only_default=True)
@dataclass(frozen=True)
class PolicyOptions:
    """The base of a policy's options. A subclass becomes a frozen dataclass by itself; it takes no decorator.

    class MyOptions(PolicyOptions):
        decode: float = option(40.0, "Decode's share of the device.", unit="%", above=0, high=95)

    Its fields are of type int, float, bool, str or a Literal of strings, or one of these or None. Whoever constructs
    one with a wrong value gets a ConfigError that names the option and what is allowed.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclass(frozen=True, kw_only=True)(cls)
        for one in fields(cls):
            if _BOUNDS not in one.metadata:
                raise TypeError(f"{cls.__name__}.{one.name}: write it as `{one.name}: TYPE = option(DEFAULT, HELP)`")

    def __post_init__(self) -> None:
        for known in options_of(type(self)).values():
            known.check(getattr(self, known.name))


def options_of(cls: type[PolicyOptions]) -> Mapping[str, PolicyOption]:
    """Returns the options that a class declares, by name, in its order. Raises TypeError for a type that is none of an
    option's."""
    hints = get_type_hints(cls)
    found = {}
    for one in fields(cls):
        kind, optional, choices = _taken_apart(hints[one.name], f"{cls.__name__}.{one.name}")
        b: _Bounds = one.metadata[_BOUNDS]
        found[one.name] = PolicyOption(
            one.name, one.default, kind, optional, b.help, b.unit, b.above, b.low, b.high, b.choices or choices
        )
    return found


def _taken_apart(hint: Any, where: str) -> tuple[type, bool, tuple[str, ...]]:
    """Returns the kind of an annotation, whether it allows None, and its choices."""
    optional = get_origin(hint) in {Union, types.UnionType} and type(None) in get_args(hint)
    alternatives = [a for a in get_args(hint) if a is not type(None)] if optional else [hint]
    if len(alternatives) == 1:
        (kind,) = alternatives
        if get_origin(kind) is Literal and all(isinstance(a, str) for a in get_args(kind)):
            return str, optional, get_args(kind)
        if kind in {int, float, bool, str}:
            return kind, optional, ()
    raise TypeError(f"{where}: an option is int, float, bool, str or a Literal of strings, or one of these or None")
