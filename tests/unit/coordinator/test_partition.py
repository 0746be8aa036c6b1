from __future__ import annotations

import pytest

from semipd.coordinator.partition import choose_backend, refuse_other_devices
from semipd.core.errors import ConfigError
from semipd.core.partition import FULL, Shares
from support.stage import Stage


@pytest.mark.parametrize(
    ("asked", "cpus", "chosen"),
    [("auto", 2, "cores"), ("auto", 1, "none"), ("none", 8, "none"), ("cores", 2, "cores")],
)
def test_auto_divides_what_can_be_divided(asked: str, cpus: int, chosen: str) -> None:
    assert choose_backend(asked, range(cpus)) == chosen


@pytest.mark.parametrize(("asked", "cpus"), [("cores", 1), ("green", 8), ("mps", 8)])
def test_what_this_machine_cannot_have_is_refused_by_the_options_name(asked: str, cpus: int) -> None:
    with pytest.raises(ConfigError, match=f"--partition {asked}"):
        choose_backend(asked, range(cpus))


def test_a_device_that_is_not_computed_on_is_refused() -> None:
    with pytest.raises(ConfigError, match="--device cuda"):
        refuse_other_devices("cuda")
    refuse_other_devices("auto")


def test_without_a_partition_both_phases_have_everything_whatever_is_asked() -> None:
    stage = Stage()
    assert stage.partition.set(Shares(30, 70)) == FULL
    assert stage.told_shares() == []


def test_a_change_is_told_to_both_workers_once() -> None:
    stage = Stage(cpus=4)
    assert stage.partition.set(Shares(25, 75)) == Shares(25, 75)
    stage.partition.set(Shares(25, 75))
    assert [(len(s.cpus), s.percent) for s in stage.told_shares()] == [(1, 25.0), (3, 75.0)]


def test_a_policy_that_wishes_the_same_again_leaves_alone_what_an_operator_set() -> None:
    stage = Stage(cpus=4)
    stage.partition.wish(Shares(50, 50))
    stage.partition.set(Shares(25, 75))
    stage.partition.wish(Shares(50, 50))
    assert stage.floor.shares == Shares(25, 75)
    stage.partition.wish(Shares(75, 25))
    assert stage.floor.shares == Shares(75, 25)
