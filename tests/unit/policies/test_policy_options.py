"""Typed options: declared once, checked wherever they are made, read from strings by the registry."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any, Literal

import pytest

from semipd.core.errors import ConfigError
from semipd.policies import Plan, Policy, PolicyOptions, Snapshot, option
from semipd.policies.policy_options import options_of
from semipd.policies.registry import read_options


class Common(PolicyOptions):
    chunk: int = option(512, "Most prompt tokens in one batch.", unit="tokens", low=1)


class AllKinds(Common):
    share: float = option(40.0, "Decode's share.", unit="%", above=0, high=95)
    limit: int | None = option(None, "Not given: the engine's limit.", low=1, high=8)
    order: Literal["fcfs", "slack"] = option("fcfs", "The order of prompts.")
    engine: str = option("any", "The engine.", choices=("any", "none"))
    note: str = option("", "Some text.")
    eager: bool = option(False, "Plans at once.")


class Takes(Policy):
    name = "takes"
    Options = AllKinds

    def plan(self, snapshot: Snapshot) -> Plan:
        return Plan()


def read(**given: str) -> PolicyOptions:
    return read_options("takes", Takes, given)


def test_defaults() -> None:
    assert read() == AllKinds()
    assert AllKinds().chunk == 512


def test_options_are_listed_in_order_those_of_the_base_first() -> None:
    known = options_of(AllKinds)
    assert list(known) == ["chunk", "share", "limit", "order", "engine", "note", "eager"]
    assert (known["chunk"].default, known["chunk"].unit) == (512, "tokens")
    assert known["chunk"].help == "Most prompt tokens in one batch."
    assert options_of(PolicyOptions) == {}


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("chunk", "a whole number, at least 1"),
        ("share", "a number above 0, at most 95"),
        ("limit", "a whole number, at least 1, at most 8"),
        ("order", "one of fcfs, slack"),
        ("engine", "one of any, none"),
        ("note", "a text"),
        ("eager", "true or false"),
    ],
)
def test_what_is_allowed_is_said_in_words(name: str, allowed: str) -> None:
    assert options_of(AllKinds)[name].allowed == allowed


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("chunk", " 64 ", 64),
        ("share", "1e1", 10.0),
        ("share", "95", 95.0),
        ("limit", "8", 8),
        ("order", "slack", "slack"),
        ("note", "a = b", "a = b"),
        ("eager", "True", True),
        ("eager", "false", False),
    ],
)
def test_text_is_read(name: str, text: str, value: object) -> None:
    found = getattr(read(**{name: text}), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chunk", "0"),
        ("chunk", "-1"),
        ("chunk", "many"),
        ("chunk", "1.5"),
        ("chunk", ""),
        ("share", "0"),
        ("share", "95.01"),
        ("share", "nan"),
        ("share", "inf"),
        ("share", "half"),
        ("limit", "9"),
        ("limit", "none"),
        ("order", "random"),
        ("engine", "ANY"),
        ("eager", "1"),
    ],
)
def test_a_wrong_text_is_refused_by_name_with_what_is_allowed(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**{name: text})
    allowed = options_of(AllKinds)[name].allowed
    assert str(caught.value) == f"policy 'takes', option {name}: must be {allowed}; got {text!r}"


@pytest.mark.parametrize(
    "wrong",
    [
        {"chunk": 0},
        {"chunk": 1.0},
        {"chunk": True},
        {"chunk": "64"},
        {"chunk": None},
        {"share": 100},
        {"share": float("nan")},
        {"share": "40"},
        {"limit": 9},
        {"order": "random"},
        {"note": 3},
        {"eager": 1},
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_where_it_is_made(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError) as caught:
        AllKinds(**wrong)
    assert str(caught.value) == f"option {name}: must be {options_of(AllKinds)[name].allowed}; got {value!r}"
    with pytest.raises(ConfigError):
        replace(AllKinds(), **wrong)


def test_an_option_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'takes' has no option colour, size; it has: chunk, share, limit, order"):
        read(size="3", colour="red")


def test_a_whole_number_is_a_number() -> None:
    assert AllKinds(share=30).share == 30


def test_options_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        AllKinds().chunk = 3  # type: ignore[misc]


def test_a_field_without_help_is_refused_when_it_is_declared() -> None:
    with pytest.raises(TypeError, match=r"Bare.chunk: write it as `chunk: TYPE = option\(DEFAULT, HELP\)`"):

        class Bare(PolicyOptions):
            chunk: int = 512


def test_a_default_that_is_not_allowed_is_refused() -> None:
    class Contrary(PolicyOptions):
        chunk: int = option(0, "Most prompt tokens in one batch.", low=1)

    with pytest.raises(ConfigError, match="option chunk: must be a whole number, at least 1; got 0"):
        Contrary()


def test_a_type_that_no_option_can_have_is_refused_by_name() -> None:
    class Wrong(PolicyOptions):
        sizes: tuple[int, ...] = option((), "Sizes.")

    class HasWrong(Takes):
        Options = Wrong  # type: ignore[assignment]

    with pytest.raises(ConfigError, match=r"'takes' declares its options wrongly: Wrong\.sizes: an option is int"):
        read_options("takes", HasWrong, {})
