"""The package that `semipd policies new NAME` writes: a policy that runs at once, and its test."""

from __future__ import annotations

import re
from collections.abc import Mapping

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
"""What a policy may be called."""

POLICY = '''\
"""The policy {name!r}."""

from __future__ import annotations

from collections.abc import Mapping

from semipd.core.partition import Shares
from semipd.core.plan import Order, OrderInput, PlaceInput, Plan
from semipd.policies.contract import Policy
from semipd.policies.toolkit.batching import fill_batch
from semipd.policies.options import Options


class {cls}(Policy):
    """Short prompts first, though none waits for ever; decode keeps its share.

    Options: `decode`, percent of the device for decode (default 40); `chunk`, prompt tokens in a batch (default 512).
    """

    name = "{name}"

    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__(options)
        read = Options(self.name, options)
        decode = read.number("decode", default=40.0, above=0.0, high=95.0)
        self._chunk = read.integer("chunk", default=512, low=1)
        read.finish()
        self._shares = Shares(prefill=100.0 - decode, decode=decode)

    def order(self, given: OrderInput) -> Order:
        # Two thousand tokens count as much as one second of waiting: what came long ago goes before what is short.
        waiting = sorted(given.snapshot.waiting, key=lambda w: (w.arrival_s + w.remaining_tokens / 2000, w.sequence))
        return Order(tuple(w.sequence for w in waiting))

    def place(self, given: PlaceInput) -> Plan:
        return Plan(prefill=fill_batch(given.snapshot, given.order, self._chunk), shares=self._shares)
'''

TEST = """\
from __future__ import annotations

from {module} import {cls}
from semipd.core.request import Slo
from semipd.policies.testing import Arrival, check_policy, replay


def test_it_keeps_the_contract() -> None:
    check_policy(lambda: {cls}({{}}))


def test_a_short_prompt_does_not_wait_for_long_ones() -> None:
    long = [Arrival(0.0, 4000, 1) for _ in range(10)]
    *_, short = replay({cls}({{}}), [*long, Arrival(0.05, 50, 1, Slo(ttft_s=0.2))])
    assert short.in_time
"""

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "0.1.0"
dependencies = ["semipd"]

[project.entry-points."semipd.policies"]
{name} = "{module}:{cls}"

[tool.setuptools]
py-modules = ["{module}"]
"""


def files(name: str) -> Mapping[str, str]:
    """Contents by file name. Raises ValueError where the name is not fit for a policy, saying what is."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"a policy is named in small letters, digits and single hyphens, as in my-policy; got {name!r}"
        )
    words = name.split("-")
    told = {"name": name, "module": "_".join(words), "cls": "".join(word.capitalize() for word in words)}
    return {
        "pyproject.toml": PYPROJECT.format(**told),
        f"{told['module']}.py": POLICY.format(**told),
        f"test_{told['module']}.py": TEST.format(**told),
    }
