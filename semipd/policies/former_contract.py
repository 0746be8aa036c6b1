"""Recognises policies that are written against the former contract, and says what to change in them.

A policy used to have two methods, `order` and `place`, with wrapper types around their arguments, and read its options
from strings. Nothing here adapts such a policy: the registry refuses it when it is loaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from semipd.policies.policy_options import PolicyOptions

PAGE = "docs/policies.md, 'From the former contract', shows each change"

WENT = {
    "AdmitInput": "write `admit(self, snapshot, sequence)`",
    "OrderInput": "write one method, `plan(self, snapshot) -> Plan`",
    "PlaceInput": "write one method, `plan(self, snapshot) -> Plan`",
    "Order": "give `fill_batch` the sorted sequences of `snapshot.waiting`",
    "Prompts": "take `prompt_order` and `order_option` of semipd.policies.toolkit.ordering",
}
"""Names that can't be imported any more, and what takes their place."""

MOVED = {
    "semipd.policies.options": "declare options as fields of a `PolicyOptions` with `option` (semipd.policies)",
    "semipd.policies.rules": "import `Broken` from semipd.policies",
    "semipd.policies.filling": "import `fill_batch` from semipd.policies",
    "semipd.policies.batch": "import from semipd.policies.toolkit.running_batch",
    "semipd.policies.latency": "import from semipd.core.latency",
    "semipd.policies.choice": "import from semipd.policies.builtin.adaptive.modes",
    "semipd.policies.rows": "import from semipd.policies.builtin.adaptive.batch_cap",
    **{
        f"semipd.policies.{name}": f"import from semipd.policies.toolkit.{name}"
        for name in ("deadlines", "fitting", "forecast", "ordering")
    },
    **{
        f"semipd.policies.{name}": f"import from semipd.policies.builtin.{name}"
        for name in ("adaptive", "chunked", "fcfs", "semi_pd", "static")
    },
}
"""Modules that can't be imported any more, and what takes their place."""


def change_for_import(error: BaseException) -> str | None:
    """Returns what to change where an import failed for a name or a module that went; None: it failed for something
    else."""
    if not isinstance(error, ImportError):
        return None
    if isinstance(error, ModuleNotFoundError):
        return MOVED.get(error.name or "")
    if not (error.name or "").startswith("semipd."):
        return None
    return next((change for name, change in WENT.items() if f"import name {name!r}" in str(error)), None)


def changes_for_class(cls: type[Any]) -> list[str]:
    """Returns what to change in a policy's class, one sentence for each thing; empty: it keeps the present contract."""
    return list(_changes(cls))


def _changes(cls: type[Any]) -> Iterator[str]:
    if "plan" in cls.__abstractmethods__:
        yield "write one method, `plan(self, snapshot) -> Plan`" + (
            ", in place of `order` and `place`" if hasattr(cls, "order") or hasattr(cls, "place") else ""
        )
    if not _takes(cls.admit, "self", "snapshot", "sequence"):
        yield "write `admit(self, snapshot, sequence)`"
    if not _takes(cls.__init__, "self") or not _takes(cls.__init__, "self", "options"):
        yield (
            "write `__init__(self, options: MyOptions | None = None)`, or none at all: options are fields of a "
            "`PolicyOptions`, read before the policy is made"
        )
    if not (isinstance(cls.Options, type) and issubclass(cls.Options, PolicyOptions)):
        yield "make its `Options` a subclass of `PolicyOptions`"


def _takes(function: Any, *arguments: object) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    return True
