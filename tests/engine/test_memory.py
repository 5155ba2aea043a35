"""What fits: contexts and pools from the model, the settings and the memory."""

from __future__ import annotations

import pytest

from finback.config import Settings
from finback.engine.memory import BLOCK_SIZE, DEFAULT_CONTEXT, default_kv_dtype, memory_for_cache, plan_cache
from finback.errors import ConfigError, ModelTooLarge
from tests.conftest import TinyConfig

PLENTY = 1 << 40


def bytes_for(tokens: int, config: TinyConfig) -> int:
    return tokens * config.kv_bytes_per_token("f32")


def test_the_default_context_is_the_models() -> None:
    assert plan_cache(TinyConfig(), Settings(), PLENTY).context == 512


def test_the_default_context_of_a_long_model_is_bounded() -> None:
    assert plan_cache(TinyConfig(max_position_embeddings=1 << 20), Settings(), PLENTY).context == DEFAULT_CONTEXT
    assert plan_cache(TinyConfig(max_position_embeddings=1 << 20), Settings(context=1 << 19), PLENTY).context == 1 << 19


def test_the_default_context_shrinks_to_memory() -> None:
    config = TinyConfig()
    plan = plan_cache(config, Settings(), bytes_for(200, config))
    assert plan.context == 192  # whole blocks
    assert plan.num_blocks == 3
    assert plan.pool_bytes <= bytes_for(200, config)


def test_the_pool_holds_every_request_that_memory_allows() -> None:
    config = TinyConfig()
    assert plan_cache(config, Settings(max_requests=3, context=100), PLENTY).num_blocks == 6
    assert plan_cache(config, Settings(max_requests=64), bytes_for(1024, config)).num_blocks == 16


def test_a_context_that_does_not_fit_is_refused_with_figures() -> None:
    config = TinyConfig()
    with pytest.raises(ModelTooLarge, match="400 tokens") as caught:
        plan_cache(config, Settings(context=400), bytes_for(399, config))
    assert "384" in (caught.value.hint or "")


def test_no_room_for_one_block_is_refused() -> None:
    config = TinyConfig()
    with pytest.raises(ModelTooLarge):
        plan_cache(config, Settings(), bytes_for(BLOCK_SIZE, config) - 1)
    assert plan_cache(config, Settings(), bytes_for(BLOCK_SIZE, config)).context == BLOCK_SIZE


def test_a_context_beyond_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="513"):
        plan_cache(TinyConfig(), Settings(context=513), PLENTY)


def test_the_caches_type_follows_the_model() -> None:
    assert default_kv_dtype(TinyConfig()) == "f32"
    assert default_kv_dtype(TinyConfig(dtype="bfloat16", is_mla=False)) == "f16"
    assert default_kv_dtype(TinyConfig(dtype="float16")) == "bf16"
    assert plan_cache(TinyConfig(), Settings(kv_dtype="bf16"), PLENTY).kv_dtype == "bf16"


def test_weights_beyond_the_machine_are_refused() -> None:
    assert memory_for_cache(0) > memory_for_cache(1 << 30) > 0
    with pytest.raises(ModelTooLarge, match="GiB"):
        memory_for_cache(1 << 50)
