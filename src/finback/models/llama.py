"""llama, qwen2 and qwen3: grouped-query attention and dense SwiGLU (R1 distills, SmolLM2).

The three differ only in what the file brings: qwen2 has biases on q, k and v; qwen3 normalises each head of
q and k.
"""

from __future__ import annotations

from dataclasses import dataclass

from finback import kernels
from finback.kernels import Matrix, Norm, Part
from finback.models.layers import Array, Fields, Layer, LayerCache, Model, mlp, model
from finback.models.rope import rotary
from finback.weights.config import ModelConfig


@dataclass(frozen=True, slots=True)
class GroupedQueryAttention:
    """Several query heads share one key and value head; all keys and values are cached."""

    config: ModelConfig
    weights: tuple[Matrix, Matrix, Matrix, Matrix]  # of q, k, v and o
    biases: tuple[Array | None, Array | None, Array | None, Array | None]  # of the same
    q_norm: Norm | None
    k_norm: Norm | None
    scale: float

    def bind(self, norm: Norm, cache: LayerCache) -> Part:
        return kernels.GroupedAttention(
            self.weights,
            cache["k"],
            cache["v"],
            norm=norm,
            biases=self.biases,
            q_norm=self.q_norm,
            k_norm=self.k_norm,
            interleaved=self.config.rope_interleaved,
            scale=self.scale,
        )

    def cache_shapes(self) -> dict[str, tuple[int, ...]]:
        shape = (self.config.num_key_value_heads, self.config.head_dim)
        return {"k": shape, "v": shape}


def build(config: ModelConfig, fields: Fields) -> Model:
    """A llama, qwen2 or qwen3 model over bound weights."""
    layers = [_layer(config, fields.below(f"layers.{i}.")) for i in range(config.num_hidden_layers)]
    divisors = fields.optional_vector("rope_freqs", config.head_dim // 2)
    return model(config, fields, layers, rotary(config.rope, config.head_dim, divisors))


def _layer(config: ModelConfig, fields: Fields) -> Layer:
    hidden = config.hidden_size
    return Layer(
        attn_norm=(fields.vector("attn_norm", hidden), config.rms_norm_eps),
        attention=_attention(config, fields.below("attn.")),
        mlp_norm=(fields.vector("mlp_norm", hidden), config.rms_norm_eps),
        feed_forward=mlp(fields, hidden, config.intermediate_size),
    )


def _attention(config: ModelConfig, fields: Fields) -> GroupedQueryAttention:
    hidden, dim = config.hidden_size, config.head_dim
    q_rows, kv_rows = config.num_attention_heads * dim, config.num_key_value_heads * dim
    return GroupedQueryAttention(
        config=config,
        weights=(
            fields.matrix("q", q_rows, hidden),
            fields.matrix("k", kv_rows, hidden),
            fields.matrix("v", kv_rows, hidden),
            fields.matrix("o", hidden, q_rows),
        ),
        biases=(
            fields.optional_vector("q_bias", q_rows),
            fields.optional_vector("k_bias", kv_rows),
            fields.optional_vector("v_bias", kv_rows),
            fields.optional_vector("o_bias", hidden),
        ),
        q_norm=(fields.vector("q_norm", dim), config.rms_norm_eps) if config.qk_norm else None,
        k_norm=(fields.vector("k_norm", dim), config.rms_norm_eps) if config.qk_norm else None,
        scale=config.attention_scale,
    )
