"""Tests which latency model a server's policies begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from semipd.coordinator.devices import ChosenDevice
from semipd.coordinator.latency import choose_latency_model
from semipd.core.config import ServerConfig
from semipd.core.errors import ConfigError
from semipd.core.latency import NOMINAL
from semipd.memory.nvml import Gpu
from semipd.profiles.latency import shipped_model
from semipd.profiles.profile import SHIPPED
from support.stage import Stage

CPU = ChosenDevice("cpu", "asked for")
L4 = ChosenDevice("cuda", "there is a GPU", Gpu("NVIDIA L4", 24 << 30, (8, 9), "", 58 * 128, 2.04e9, 300e9))


@pytest.fixture(autouse=True)
def no_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_on_a_cpu_it_is_a_roofline_of_its_cores() -> None:
    chosen = choose_latency_model(ServerConfig(), CPU, 2)
    assert not chosen.measured
    assert chosen.source.startswith("roofline of 2 CPUs")
    assert choose_latency_model(ServerConfig(), CPU, 4).latency.token_s == pytest.approx(chosen.latency.token_s / 2)


def test_a_gpu_without_a_profile_has_a_roofline_and_is_told_how_to_get_one() -> None:
    chosen = choose_latency_model(ServerConfig(), L4, 2)
    assert "NVIDIA L4 (58 SMs" in chosen.source
    assert "semipd profile" in chosen.why
    assert chosen.latency != choose_latency_model(ServerConfig(dtype="float32"), L4, 2).latency


def test_the_profile_that_is_asked_for_is_taken_or_the_server_does_not_start() -> None:
    assert choose_latency_model(ServerConfig(profile=SHIPPED), L4, 2).latency == shipped_model()
    with pytest.raises(ConfigError, match=r"--profile: nowhere\.json"):
        choose_latency_model(ServerConfig(profile="nowhere.json"), L4, 2)


def test_a_model_that_can_not_be_read_is_the_residents_to_refuse(tmp_path: Path) -> None:
    assert choose_latency_model(ServerConfig(model=str(tmp_path)), L4, 2).latency == NOMINAL


def test_snapshots_carry_it() -> None:
    stage = Stage()
    stage.state.latency = shipped_model()
    again = type(stage.coordinator)(stage.state, stage.coordinator.host, stage.partition, "tiny", list)
    assert again.snapshot().limits.latency == shipped_model()
