"""Reads a JSON object that somebody else wrote, such as a checkpoint's config.json, with types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from semipd.core.errors import CheckpointError


class Fields:
    """The fields of one JSON object. A null counts as absent.

    Everything here raises CheckpointError with the field's path and value, and what is allowed.
    """

    def __init__(self, values: Mapping[str, Any], source: str, path: str = "") -> None:
        self._values = values
        self._source = source
        self._path = path

    def names(self) -> frozenset[str]:
        """Returns the names of the fields that are there and not null."""
        return frozenset(name for name, value in self._values.items() if value is not None)

    def raw(self, name: str) -> Any:
        """Returns the value as it is; None: absent or null."""
        return self._values.get(name)

    def has_null(self, name: str) -> bool:
        """Says that the field is there and null, for the few fields where that differs from being absent."""
        return name in self._values and self._values[name] is None

    def refuse(self, name: str, allowed: str) -> NoReturn:
        raise CheckpointError(f"{self._source}: {self._path}{name} = {self.raw(name)!r}; supported: {allowed}")

    def within(self, name: str) -> Fields:
        """Returns the object in field `name`; an empty one if it is absent."""
        value = self.raw(name)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            self.refuse(name, "an object")
        return Fields(value, self._source, f"{self._path}{name}.")

    def integer(self, name: str, default: int | None = None, minimum: int = 1) -> int:
        value = self._present(name, default, "an integer")
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            self.refuse(name, f"an integer of at least {minimum}")
        return value

    def number(self, name: str, default: float | None = None, minimum: float = 0.0) -> float:
        """Returns a finite number above `minimum`."""
        value = self._present(name, default, "a number")
        if isinstance(value, bool) or not isinstance(value, int | float) or not minimum < value < math.inf:
            self.refuse(name, f"a number above {minimum:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._present(name, default, "true or false")
        if not isinstance(value, bool):
            self.refuse(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._present(name, default, "a string")
        if not isinstance(value, str):
            self.refuse(name, "a string")
        return value

    def _present(self, name: str, default: Any, what: str) -> Any:
        value = self.raw(name)
        if value is not None:
            return value
        if default is None:
            raise CheckpointError(f"{self._source}: {self._path}{name} is missing; it must be {what}")
        return default
