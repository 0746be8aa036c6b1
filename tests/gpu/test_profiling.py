"""`semipd profile` on a GPU, with a small model: two processes under MPS, whatever their times are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from semipd.coordinator.devices import choose_device
from semipd.coordinator.latency import choose_latency_model
from semipd.core.config import ServerConfig
from semipd.profiler.record import record
from semipd.profiles.cache import cache_file
from semipd.profiles.latency import latency_model
from semipd.profiles.profile import read_profile
from semipd.sim.execution_times import ProfileTimes

pytestmark = pytest.mark.gpu

SMALL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@pytest.mark.skipif(shutil.which("nvidia-cuda-mps-control") is None, reason="no MPS")
def test_a_recording_is_a_profile_that_can_be_simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    out = tmp_path / "profile.json"
    record(tmp_path, out, quick=True, seconds=90.0, dtype="bfloat16", mps="own")
    profile = read_profile(out)
    assert profile.source.recorded
    assert read_profile(cache_file(profile.gpu, profile.model)) == profile
    chosen = choose_latency_model(ServerConfig(model=str(tmp_path)), choose_device("cuda"), 1)
    assert chosen.latency == latency_model(profile), "the next start of a server finds it"
    assert any(table.other_sms for table in profile.decode)
    times, sms = ProfileTimes(profile), profile.gpu.sms
    assert times.decode_s(64, 64 * 4096, sms, 0) > times.decode_s(1, 512, sms, 0)
    mixed = {(p.rows, p.context, p.tokens): p.ms for p in profile.mixed}
    assert mixed[64, 512, 2048] > mixed[64, 512, 512] > times.decode_s(64, 64 * 512, sms, 0) * 1e3
    assert profile.turns
    for one in profile.turns:
        assert times.step_by_turns(one.rows) > 0.5, "nothing gets twice as fast in company"
        assert times.pass_by_turns(one.tokens) > 0.5
    assert times.prefill_s(2048, 2048**2 / 2, sms, 0) > times.prefill_s(256, 256**2 / 2, sms, 0)
