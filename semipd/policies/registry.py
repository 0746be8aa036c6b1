"""Finds policies by entry point (group `semipd.policies`), makes them, and reads their options from strings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from semipd.core.errors import ConfigError
from semipd.policies import former_contract
from semipd.policies.contract import Policy
from semipd.policies.policy_options import PolicyOption, PolicyOptions, options_of

GROUP = "semipd.policies"


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """A policy that is installed, whether or not it can be loaded."""

    name: str
    distribution: str
    """The package that brings it."""
    entry_point: EntryPoint

    def load(self) -> type[Policy]:
        """Imports the class. Raises ConfigError where that fails, where it is no policy, and where it is written
        against a former contract: then the message says what to change."""
        who = f"policy {self.name!r} of {self.distribution}"
        try:
            found = self.entry_point.load()
        except Exception as error:  # a plug-in may raise anything at all when it is imported
            change = former_contract.change_for_import(error)
            if change is not None:
                raise ConfigError(_outdated(who, f"{error}", [change])) from error
            raise ConfigError(f"{who} can't be imported: {error!r}") from error
        if not (isinstance(found, type) and issubclass(found, Policy)):
            raise ConfigError(f"{who} is not a subclass of {Policy.__qualname__}")
        changes = former_contract.changes_for_class(found)
        if changes:
            raise ConfigError(_outdated(who, f"its class {found.__name__} does not fit", changes))
        if not isinstance(getattr(found, "name", None), str):
            raise ConfigError(f"{who} has no name: write `name = {self.name!r}` in its class {found.__name__}")
        return found

    @property
    def summary(self) -> str:
        """The first line of the class's docstring, or why it can't be loaded."""
        try:
            doc = self.load().__doc__ or ""
        except ConfigError as error:
            return str(error)
        return doc.strip().partition("\n")[0]


def _outdated(who: str, why: str, changes: list[str]) -> str:
    return f"{who} does not keep the present contract of policies: {why}. {'; '.join(changes)}. {former_contract.PAGE}"


def discover() -> dict[str, PolicyEntry]:
    """Returns what is installed, by name."""
    found = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        distribution = point.dist.name if point.dist else "unknown"
        found[point.name] = PolicyEntry(point.name, distribution, point)
    return found


def find_policy(name: str) -> type[Policy]:
    """Returns a policy's class. Raises ConfigError where none has that name, naming those that are there, and where it
    can't be loaded."""
    installed = discover()
    if name not in installed:
        raise ConfigError(f"no policy is named {name!r}; installed: {', '.join(installed) or 'none'}")
    return installed[name].load()


def make_policy(name: str, options: Mapping[str, str]) -> Policy:
    """Returns a fresh policy with the options that a user gave as text (`--policy-option NAME=VALUE`).

    Raises ConfigError, naming the policy or the option and what is allowed.
    """
    cls = find_policy(name)
    chosen = read_options(name, cls, options)
    try:
        return cls(chosen)
    except ConfigError:
        raise
    except Exception as error:  # a plug-in's constructor may raise anything at all
        raise ConfigError(f"policy {name!r} can't be made with the options given: {error!r}") from error


def policy_options(policy: str, cls: type[Policy]) -> Mapping[str, PolicyOption]:
    """Returns the options of a policy, by name. Raises ConfigError where its author declares them wrongly."""
    try:
        return options_of(cls.Options)
    except (TypeError, NameError) as error:  # an annotation that is none of an option's
        raise ConfigError(f"policy {policy!r} declares its options wrongly: {error}") from error


def read_options(policy: str, cls: type[Policy], given: Mapping[str, str]) -> PolicyOptions:
    """Returns the typed options of a policy. Raises ConfigError for one that it does not have, or a wrong value."""
    known = policy_options(policy, cls)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(f"policy {policy!r} has no option {', '.join(unknown)}; it has: {', '.join(known) or 'none'}")
    try:
        return cls.Options(**{name: known[name].read(text) for name, text in given.items()})
    except ConfigError as error:
        raise ConfigError(f"policy {policy!r}, {error}") from error
