"""Makes the package that `semipd policies new NAME` writes: a policy that runs at once, and its test."""

from __future__ import annotations

import re
from collections.abc import Mapping

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
"""The names that a policy may have."""

POLICY = '''\
"""The policy {name!r}."""

from __future__ import annotations

from semipd.policies import Plan, Policy, PolicyOptions, Shares, Snapshot, fill_batch, option


class {cls}Options(PolicyOptions):
    decode: float = option(40.0, "Decode's share of the device.", unit="%", above=0, high=95)
    chunk: int = option(512, "Most prompt tokens in one prefill batch.", unit="tokens", low=1)


class {cls}(Policy):
    """Short prompts first, though none waits for ever; decode keeps its share."""

    name = "{name}"
    Options = {cls}Options
    options: {cls}Options

    def plan(self, snapshot: Snapshot) -> Plan:
        # Two thousand tokens count as much as one second of waiting: what came long ago goes before what is short.
        order = sorted(snapshot.waiting, key=lambda w: (w.arrival_s + w.remaining_tokens / 2000, w.sequence))
        decode = self.options.decode
        return Plan(
            prefill=fill_batch(snapshot, order, self.options.chunk),
            shares=Shares(prefill=100 - decode, decode=decode),
        )
'''

TEST = """\
from __future__ import annotations

from {module} import {cls}
from semipd.policies import Slo
from semipd.testing import Arrival, check_policy, replay


def test_it_keeps_the_contract() -> None:
    check_policy({cls})


def test_a_short_prompt_does_not_wait_for_long_ones() -> None:
    long = [Arrival(0.0, 4000, 1) for _ in range(10)]
    *_, short = replay({cls}(), [*long, Arrival(0.05, 50, 1, Slo(ttft_s=0.2))])
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
    """Returns the contents of the files, by file name. Raises ValueError, which says what a policy may be called."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"a policy is named in small letters, digits and single hyphens, as in my-policy; got {name!r}"
        )
    words = name.split("-")
    words_of_name = {"name": name, "module": "_".join(words), "cls": "".join(word.capitalize() for word in words)}
    return {
        "pyproject.toml": PYPROJECT.format(**words_of_name),
        f"{words_of_name['module']}.py": POLICY.format(**words_of_name),
        f"test_{words_of_name['module']}.py": TEST.format(**words_of_name),
    }
