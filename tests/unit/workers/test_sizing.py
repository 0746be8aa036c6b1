from __future__ import annotations

import pytest

from semipd.core.config import GPU_RESERVE_BYTES, ServerConfig
from semipd.core.errors import ConfigError, StartError
from semipd.core.model import ModelConfig, parse_model_config
from semipd.workers.sizing import pool_pages

GB = 1_000_000_000


@pytest.fixture
def model() -> ModelConfig:
    """A page of it takes 2 layers x 2 x 16 tokens x 2 heads x 16 numbers = 2048 numbers."""
    return parse_model_config(
        {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 256,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
        }
    )


def test_by_default_the_pool_holds_what_a_full_batch_of_full_contexts_can_use(model: ModelConfig) -> None:
    assert pool_pages(ServerConfig(max_running=8), model, 4, 100 * GB) == 8 * 512 // 16


def test_by_default_the_pool_takes_half_of_what_is_available_at_most(model: ModelConfig) -> None:
    assert pool_pages(ServerConfig(max_running=64), model, 4, 100 * 2048 * 4) == 50


def test_on_a_gpu_the_pool_takes_all_but_what_is_kept_for_the_workers(model: ModelConfig) -> None:
    config = ServerConfig(device="cuda", max_running=64)
    assert pool_pages(config, model, 2, GPU_RESERVE_BYTES + 100 * 2048 * 2) == 100
    assert pool_pages(config, model, 2, 140 * GB) == 64 * 512 // 16
    with pytest.raises(StartError, match=r"5\.0 GB of free GPU memory, less 7 GB for the workers, leave room for 0"):
        pool_pages(config, model, 2, 5 * GB)


def test_pages_or_gigabytes_can_be_asked_for(model: ModelConfig) -> None:
    assert pool_pages(ServerConfig(kv_pages=77), model, 4, GB) == 77
    assert pool_pages(ServerConfig(kv_memory_gb=0.001), model, 4, GB) == 1_000_000 // (2048 * 4)


def test_less_than_one_context_is_refused(model: ModelConfig) -> None:
    with pytest.raises(ConfigError, match=r"--kv-pages 10.*512 tokens needs 32"):
        pool_pages(ServerConfig(kv_pages=10), model, 4, GB)
    with pytest.raises(StartError, match="lower --max-context"):
        pool_pages(ServerConfig(max_running=64), model, 4, 2048)


def test_a_shorter_context_needs_less(model: ModelConfig) -> None:
    assert pool_pages(ServerConfig(kv_pages=10, max_context=160), model, 4, GB) == 10


def test_the_context_ends_where_the_models_positions_do(model: ModelConfig) -> None:
    assert model.context_limit(0) == 512
    with pytest.raises(ConfigError, match="positions end at 512; got 513"):
        model.context_limit(513)
