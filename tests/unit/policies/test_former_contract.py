"""A plug-in that is written against the former contract is refused, and is told what to change."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from textwrap import dedent, indent

import pytest

from semipd.core.errors import ConfigError
from semipd.policies.former_contract import MOVED, PAGE
from semipd.policies.registry import GROUP, PolicyEntry, discover, make_policy

HEAD = """
from semipd.policies import Admission, Plan, Policy, PolicyOptions


class Plugin(Policy):
    name = "plugin"
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which modules are found while the test runs."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("plugin", None)


def refusal(site: Path, code: str) -> str:
    """Returns what is said of a plug-in with that code when it is loaded."""
    (site / "plugin.py").write_text(code)
    entry = PolicyEntry("plugin", "theirs", EntryPoint("plugin", "plugin:Plugin", GROUP))
    with pytest.raises(ConfigError) as caught:
        entry.load()
    assert entry.summary == str(caught.value)
    return str(caught.value)


def of_class(body: str) -> str:
    return HEAD + indent(dedent(body), "    ") + "\n"


def test_a_policy_with_order_and_place_is_told_to_write_plan(site: Path) -> None:
    said = refusal(
        site,
        of_class("""
        def order(self, given):
            return given.snapshot.waiting

        def place(self, given):
            return Plan()
        """),
    )
    assert said.startswith("policy 'plugin' of theirs does not keep the present contract of policies")
    assert "write one method, `plan(self, snapshot) -> Plan`, in place of `order` and `place`" in said
    assert said.endswith(PAGE)


def test_a_policy_without_plan_is_told_to_write_it(site: Path) -> None:
    assert "write one method, `plan(self, snapshot) -> Plan`." in refusal(site, of_class("pass"))


@pytest.mark.parametrize(
    ("line", "change"),
    [
        ("from semipd.core.plan import Order, Plan", "give `fill_batch` the sorted sequences"),
        ("from semipd.core.plan import OrderInput, PlaceInput", "write one method, `plan(self, snapshot) -> Plan`"),
        ("from semipd.core.plan import PlaceInput", "write one method, `plan(self, snapshot) -> Plan`"),
        ("from semipd.core.plan import AdmitInput", "write `admit(self, snapshot, sequence)`"),
        ("from semipd.policies.options import Options", "declare options as fields of a `PolicyOptions`"),
        ("from semipd.policies.rules import Broken", "import `Broken` from semipd.policies"),
        ("from semipd.policies.filling import fill_batch", "import `fill_batch` from semipd.policies"),
        ("from semipd.policies.ordering import BySlack", "import from semipd.policies.toolkit.ordering"),
        ("from semipd.policies.toolkit.ordering import Prompts", "take `prompt_order` and `order_option`"),
        ("from semipd.policies.static import Static", "import from semipd.policies.builtin.static"),
    ],
)
def test_an_import_of_what_went_is_told_what_takes_its_place(site: Path, line: str, change: str) -> None:
    said = refusal(site, line + of_class("def plan(self, snapshot): return Plan()"))
    assert change in said
    assert PAGE in said


@pytest.mark.parametrize("module", MOVED)
def test_a_module_that_moved_is_gone_from_its_place_and_there_at_the_new_one(module: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        __import__(module)
    new = MOVED[module].split()[-1].strip("()")
    if new.startswith("semipd."):
        __import__(new)


def test_another_import_error_is_none_of_the_contracts_matter(site: Path) -> None:
    assert refusal(site, "import nobody_has_this") == (
        "policy 'plugin' of theirs can't be imported: ModuleNotFoundError(\"No module named 'nobody_has_this'\")"
    )
    assert "can't be imported: ImportError" in refusal(site, "from semipd.policies import Nonsense")


@pytest.mark.parametrize(
    "body",
    [
        """
        def __init__(self, options):
            super().__init__(options)
        """,
        """
        def __init__(self):
            super().__init__()
        """,
    ],
    ids=["options as strings", "no options at all"],
)
def test_a_constructor_of_the_former_kind_is_told_how_to_take_options(site: Path, body: str) -> None:
    said = refusal(site, of_class(dedent(body) + "\ndef plan(self, snapshot): return Plan()"))
    assert "write `__init__(self, options: MyOptions | None = None)`, or none at all" in said


def test_an_admit_of_the_former_kind_is_told_its_arguments(site: Path) -> None:
    said = refusal(
        site,
        of_class("""
        def admit(self, given):
            return Admission()

        def plan(self, snapshot):
            return Plan()
        """),
    )
    assert "write `admit(self, snapshot, sequence)`" in said


def test_options_that_are_no_policy_options_are_refused(site: Path) -> None:
    said = refusal(site, of_class("Options = dict\n\ndef plan(self, snapshot): return Plan()"))
    assert "make its `Options` a subclass of `PolicyOptions`" in said


def test_a_policy_without_a_name_is_told_to_take_one(site: Path) -> None:
    said = refusal(site, of_class("def plan(self, snapshot): return Plan()").replace('name = "plugin"', "pass"))
    assert said == "policy 'plugin' of theirs has no name: write `name = 'plugin'` in its class Plugin"


def test_one_that_reads_options_as_strings_by_itself_is_refused_when_it_is_made(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site / "plugin.py").write_text(
        of_class("""
        def __init__(self, options=None):
            super().__init__(options)
            self.chunk = int(options.get("chunk", "512"))

        def plan(self, snapshot):
            return Plan()
        """)
    )
    info = site / "plugin-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[semipd.policies]\nplugin = plugin:Plugin\n")
    assert discover()["plugin"].load().name == "plugin"
    with pytest.raises(ConfigError, match="policy 'plugin' can't be made with the options given: AttributeError"):
        make_policy("plugin", {})
    with pytest.raises(ConfigError, match="policy 'plugin' has no option chunk; it has: none"):
        make_policy("plugin", {"chunk": "3"})
