"""Tests which latency model policies begin with, and from where."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from semipd.core.errors import InputError
from semipd.core.model import ModelConfig, parse_model_config
from semipd.memory.nvml import Gpu
from semipd.profiles.cache import cache_file, cache_folder, keep
from semipd.profiles.find import find_model
from semipd.profiles.hardware import Hardware, hardware_of_cpu, hardware_of_gpu
from semipd.profiles.latency import latency_model, shipped_model
from semipd.profiles.profile import SHIPPED, Profile, load_profile
from semipd.profiles.shape import model_shape

LLAMA = parse_model_config(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rope_theta": 500_000.0,
    }
)
H200 = hardware_of_gpu(Gpu("NVIDIA H200", 150_754_820_096, (9, 0), "", 132 * 128, 1.98e9, 4.9e12), "bfloat16")
SHIP = load_profile(SHIPPED)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def recorded_here(**changes: object) -> Profile:
    """Makes a profile whose decode is twice as slow as that of the one that ships."""
    tables = tuple(replace(t, points=tuple(replace(p, ms=2 * p.ms) for p in t.points)) for t in SHIP.decode)
    return replace(SHIP, decode=tables, **changes)  # type: ignore[arg-type]


def found(asked: str = "", hardware: Hardware = H200, model: ModelConfig = LLAMA, dtype: str = "bfloat16") -> str:
    return find_model(asked, hardware, model, dtype).source


def test_the_profile_that_ships_is_taken_on_its_gpu_for_its_model_shape() -> None:
    chosen = find_model("", H200, LLAMA, "bfloat16")
    assert chosen.latency == shipped_model()
    assert chosen.measured
    assert chosen.source == f"profile {SHIPPED}, which ships"
    assert chosen.warnings == ()


def test_one_that_was_recorded_on_this_machine_comes_before_it() -> None:
    mine = recorded_here()
    file = keep(mine)
    chosen = find_model("", H200, LLAMA, "bfloat16")
    assert chosen.latency == latency_model(mine)
    assert str(file) in chosen.source


def test_the_one_that_is_asked_for_comes_before_all(tmp_path: Path) -> None:
    keep(recorded_here())
    assert find_model(SHIPPED, H200, LLAMA, "bfloat16").latency == shipped_model()
    mine = tmp_path / "mine.json"
    recorded_here().save(mine)
    chosen = find_model(str(mine), H200, LLAMA, "bfloat16")
    assert chosen.latency == latency_model(load_profile(str(mine)))
    assert chosen.why == "asked for"


def test_one_that_is_asked_for_and_of_something_else_is_taken_with_a_warning() -> None:
    chosen = find_model(SHIPPED, replace(H200, name="NVIDIA H100"), LLAMA, "bfloat16")
    assert chosen.latency == shipped_model()
    assert chosen.warnings == (f"{SHIPPED}: recorded on NVIDIA H200, and this is NVIDIA H100",)
    assert "no GPU" in find_model(SHIPPED, hardware_of_cpu(4), LLAMA, "float32").warnings[0]


def test_one_that_is_asked_for_and_not_there_is_an_error() -> None:
    with pytest.raises(InputError, match=r"nowhere\.json: no such profile"):
        find_model("nowhere.json", H200, LLAMA, "bfloat16")


@pytest.mark.parametrize(
    ("hardware", "model", "dtype"),
    [
        (replace(H200, name="NVIDIA H100"), LLAMA, "bfloat16"),
        (replace(H200, sms=78), LLAMA, "bfloat16"),
        (H200, LLAMA, "float16"),
        (H200, replace(LLAMA, kv_heads=32), "bfloat16"),
        (H200, replace(LLAMA, intermediate_size=28_672), "bfloat16"),
        (hardware_of_cpu(2), LLAMA, "float32"),
    ],
    ids=["another GPU", "fewer SMs", "another format", "more KV", "more weights", "a CPU"],
)
def test_for_anything_else_it_is_a_roofline(hardware: Hardware, model: ModelConfig, dtype: str) -> None:
    keep(recorded_here())
    chosen = find_model("", hardware, model, dtype)
    assert not chosen.measured
    assert chosen.source == str(hardware)
    assert chosen.warnings == ()
    assert chosen.latency.decode_s(1, 512) > 0


def test_a_vocabulary_that_was_extended_is_no_other_shape_and_unknown_sms_are_no_other_gpu() -> None:
    assert SHIPPED in found(model=replace(LLAMA, vocab_size=128_300))
    assert SHIPPED in found(hardware=replace(H200, sms=64, sms_known=False))


def test_a_broken_file_and_one_of_another_program_are_ignored_and_told_of() -> None:
    cache_folder().mkdir(parents=True)
    broken, alien = cache_folder() / "broken.json", cache_folder() / "alien.json"
    broken.write_text('{"kind": "semipd profile", "format": 1, "decode"')
    alien.write_text('{"made by": "somebody else"}')
    chosen = find_model("", H200, LLAMA, "bfloat16")
    assert chosen.latency == shipped_model()
    assert len(chosen.warnings) == 2
    assert all("ignored" in warning for warning in chosen.warnings)
    assert any(str(broken) in warning for warning in chosen.warnings)


def test_a_folder_that_can_not_be_opened_is_no_error(cache: Path) -> None:
    cache.mkdir()
    (cache / "semipd").touch()
    assert SHIPPED in found()


class TestCache:
    def test_a_file_is_its_owners_alone_and_replaces_the_former_at_once(self) -> None:
        first = keep(SHIP)
        assert stat.S_IMODE(first.stat().st_mode) == 0o600
        assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
        assert keep(recorded_here()) == first
        assert load_profile(str(first)) == load_profile(str(first))
        assert list(first.parent.iterdir()) == [first]

    def test_each_gpu_and_model_shape_has_a_file_of_its_own(self) -> None:
        other = model_shape("other", replace(LLAMA, layers=16), "bfloat16")
        files = {
            cache_file(SHIP.gpu, SHIP.model),
            cache_file(replace(SHIP.gpu, sms=78), SHIP.model),
            cache_file(replace(SHIP.gpu, name="NVIDIA H100 PCIe"), SHIP.model),
            cache_file(SHIP.gpu, other),
        }
        assert len(files) == 4
        assert cache_file(SHIP.gpu, SHIP.model).name == "nvidia-h200-132sms-bfloat16-16060522496-131072.json"

    def test_a_relative_cache_home_is_ignored(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", "here")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert cache_folder() == tmp_path / ".cache" / "semipd" / "profiles"
