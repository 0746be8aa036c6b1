"""Finds policies by entry point (group `semipd.policies`) and makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from semipd.core.errors import ConfigError
from semipd.policies.contract import Policy

GROUP = "semipd.policies"


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """A policy that is installed, whether or not it can be loaded."""

    name: str
    distribution: str
    """The package that brings it."""
    entry_point: EntryPoint

    def load(self) -> type[Policy]:
        """Imports the class. Raises ConfigError where that fails or where it is no policy."""
        try:
            found = self.entry_point.load()
        except Exception as error:  # a plug-in may raise anything at all when it is imported
            raise ConfigError(f"policy {self.name!r} of {self.distribution} can't be imported: {error!r}") from error
        if not (isinstance(found, type) and issubclass(found, Policy)):
            raise ConfigError(f"policy {self.name!r} of {self.distribution} is not a subclass of {Policy.__qualname__}")
        return found

    @property
    def summary(self) -> str:
        """The first line of the class's docstring, or why it can't be loaded."""
        try:
            doc = self.load().__doc__ or ""
        except ConfigError as error:
            return str(error)
        return doc.strip().partition("\n")[0]


def discover() -> dict[str, PolicyEntry]:
    """What is installed, by name."""
    found = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        distribution = point.dist.name if point.dist else "unknown"
        found[point.name] = PolicyEntry(point.name, distribution, point)
    return found


def make_policy(name: str, options: Mapping[str, str]) -> Policy:
    """A fresh policy. Raises ConfigError, naming the policy or the option and what is allowed."""
    installed = discover()
    if name not in installed:
        raise ConfigError(f"no policy is named {name!r}; installed: {', '.join(installed) or 'none'}")
    cls = installed[name].load()
    try:
        return cls(options)
    except ConfigError:
        raise
    except Exception as error:  # a plug-in's constructor may raise anything at all
        raise ConfigError(f"policy {name!r} can't be made with the options given: {error!r}") from error
