"""Reads a policy's options: strings in, checked values out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from semipd.core.errors import ConfigError


class Options:
    """Takes options one by one; `finish` then refuses what nobody asked for. Every error is a ConfigError."""

    def __init__(self, policy: str, given: Mapping[str, str]) -> None:
        self._policy = policy
        self._left = dict(given)
        self._known: list[str] = []

    def integer(self, name: str, *, default: int, low: int) -> int:
        text = self._take(name)
        if text is None:
            return default
        if not (text.strip().isdecimal() and int(text) >= low):
            raise self._refusal(name, text, f"a whole number, at least {low}")
        return int(text)

    def number(self, name: str, *, default: float, above: float, high: float) -> float:
        text = self._take(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not above < value <= high:
            raise self._refusal(name, text, f"a number above {above:g}, at most {high:g}")
        return value

    def choice(self, name: str, *, default: str, among: Sequence[str]) -> str:
        text = self._take(name)
        if text is None:
            return default
        if text not in among:
            raise self._refusal(name, text, f"one of {', '.join(among)}")
        return text

    def finish(self) -> None:
        if self._left:
            known = ", ".join(self._known) or "none"
            raise ConfigError(f"policy {self._policy!r} has no option {', '.join(sorted(self._left))}; it has: {known}")

    def _take(self, name: str) -> str | None:
        self._known.append(name)
        return self._left.pop(name, None)

    def _refusal(self, name: str, text: str, allowed: str) -> ConfigError:
        return ConfigError(f"policy {self._policy!r}, option {name}: must be {allowed}; got {text!r}")
