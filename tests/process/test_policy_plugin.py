"""Runs policies of another package in a server: the README's, one that loops, and one of the former contract."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from semipd_client import InvalidArgument, NotFound
from support.server import RunningServer, until

README = Path(__file__).resolve().parents[2] / "README.md"

WRONG = '''
from semipd.policies import Policy


class Loops(Policy):
    """Never comes back."""

    name = "loops"

    def plan(self, snapshot):
        while True:
            pass
'''

FORMER = """
from semipd.core.plan import Order, OrderInput, PlaceInput, Plan
from semipd.policies.contract import Policy
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installs a distribution with three policies: the README's, one that loops, and one of the former contract."""
    folder = tmp_path_factory.mktemp("site")
    (code,) = re.findall(r"```python\n(# shortest_first\.py\n.*?)```", README.read_text(), re.DOTALL)
    (folder / "shortest_first.py").write_text(code)
    (folder / "loops.py").write_text(WRONG)
    (folder / "former.py").write_text(FORMER)
    info = folder / "shortest_first-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shortest-first\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(
        "[semipd.policies]\n"
        "shortest-first = shortest_first:ShortestFirst\n"
        "loops = loops:Loops\n"
        "former = former:Former\n"
    )
    return folder


def test_the_readmes_policy_serves(plugins: Path) -> None:
    path = os.pathsep.join([str(plugins), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (
        RunningServer("--policy", "shortest-first", environment={"PYTHONPATH": path}) as server,
        server.client() as client,
    ):
        found = {p.name: p for p in client.policies()}
        assert found["shortest-first"].active
        assert found["shortest-first"].distribution == "shortest-first"
        assert found["shortest-first"].summary.startswith("Shortest prompt first")
        assert client.generate("The harbour", max_tokens=5, ignore_eos=True).usage.output_tokens == 5

        client.set_policy("loops")
        assert client.generate("The harbour", max_tokens=5, ignore_eos=True).usage.output_tokens == 5
        assert until(lambda: [p.name for p in client.policies() if p.active] == ["fcfs"])

        with pytest.raises(InvalidArgument, match="does not keep the present contract of policies"):
            client.set_policy("former")
        assert found["former"].summary.endswith("'From the former contract', shows each change")
        with pytest.raises(NotFound) as caught:
            client.set_policy("nobody")
        assert caught.value.reason == "POLICY_NOT_FOUND"
        with pytest.raises(InvalidArgument):
            client.set_policy("static", {"prefill": "200"})
