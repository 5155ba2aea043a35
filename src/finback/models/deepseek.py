"""deepseek_v2 and deepseek_v3: multi-head latent attention (MLA) and experts (V2-Lite, V2, V3, R1, V3.1).

MLA caches one latent vector and one rotary key per token, shared by all heads. Attention over them has two
forms with the same value. Expanded: keys and values of every head are computed from the latents, which is
cheaper when many queries share them, so prompt tokens use it. Absorbed: the queries are mapped into the
latent space instead, so that a generated token touches nothing but the latents. Where tile registers multiply
latents, prompt tokens behind a long context are absorbed, too. Which form a token takes depends on its role and
position alone, never on what else is in the batch.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TypeAlias

from finback import kernels
from finback.kernels import Matrix, Norm, Part
from finback.models.layers import Array, FeedForward, Fields, Layer, LayerCache, Model, mlp, model, moe
from finback.models.rope import rotary
from finback.weights.config import ModelConfig

# The published models normalise the low-rank projections with this constant, whatever rms_norm_eps says.
LATENT_NORM_EPS = 1e-6
# Queries pass through a narrow projection with a bias and a norm (V2 and V3; V2-Lite has none).
Bottleneck: TypeAlias = tuple[Matrix, Array | None, Norm]

ABSORBED_FROM = 1024  # a prompt's position, on tile registers: about where both forms cost the same for 512 tokens


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """MLA. A head's query is [nope | rope]; a cache entry is [latent | rotary key]."""

    config: ModelConfig
    bottleneck: Bottleneck | None
    q: Matrix  # hidden, or what passed the bottleneck -> queries
    kv_a: Matrix  # hidden -> [latent | rotary key]
    kv_a_bias: Array | None
    kv_a_norm: Norm
    k_up: Matrix  # per head: latent -> key
    k_absorb: Matrix  # per head: query -> latent, the transpose of k_up
    v_up: Matrix  # per head: latent -> value, so also attended latent -> head output
    o: Matrix
    o_bias: Array | None
    scale: float
    working_bytes: int = 256 << 20  # of keys and values, or of queries in latent space and what they attend to

    def bind(self, norm: Norm, cache: LayerCache) -> Part:
        on_tiles = kernels.latents_on_tiles(cache["latent"], self.config.kv_lora_rank)
        return kernels.LatentAttention(
            q=self.q,
            kv_a=self.kv_a,
            k_up=self.k_up,
            k_absorb=self.k_absorb,
            v_up=self.v_up,
            o=self.o,
            cache=cache["latent"],
            norm=norm,
            bottleneck=self.bottleneck,
            kv_a_bias=self.kv_a_bias,
            kv_a_norm=self.kv_a_norm,
            o_bias=self.o_bias,
            interleaved=self.config.rope_interleaved,
            scale=self.scale,
            absorbed_from=ABSORBED_FROM if on_tiles else sys.maxsize,
            working_bytes=self.working_bytes,
        )

    def cache_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"latent": (self.config.kv_lora_rank + self.config.qk_rope_head_dim,)}


def build(config: ModelConfig, fields: Fields) -> Model:
    """A deepseek_v2 or deepseek_v3 model over bound weights."""
    layers = [_layer(config, fields.below(f"layers.{i}.")) for i in range(config.num_hidden_layers)]
    return model(config, fields, layers, rotary(config.rope, config.qk_rope_head_dim))


def _layer(config: ModelConfig, fields: Fields) -> Layer:
    hidden = config.hidden_size
    return Layer(
        attn_norm=(fields.vector("attn_norm", hidden), config.rms_norm_eps),
        attention=_attention(config, fields.below("attn.")),
        mlp_norm=(fields.vector("mlp_norm", hidden), config.rms_norm_eps),
        feed_forward=_feed_forward(config, fields),
    )


def _feed_forward(config: ModelConfig, fields: Fields) -> FeedForward:
    # The files decide which layers are dense: publishers differ in how they count them.
    if config.moe is None or "moe.router" not in fields:
        return mlp(fields, config.hidden_size, config.intermediate_size)
    return moe(fields, config.hidden_size, config.moe)


def _attention(config: ModelConfig, fields: Fields) -> LatentAttention:
    c, hidden, heads = config, config.hidden_size, config.num_attention_heads
    latent, rank = c.kv_lora_rank, c.q_lora_rank
    q_rows, kv_rows = heads * c.qk_head_dim, latent + c.qk_rope_head_dim
    return LatentAttention(
        config=config,
        bottleneck=_bottleneck(fields, c),
        q=fields.matrix("q", q_rows, hidden) if rank is None else fields.matrix("q_b", q_rows, rank),
        kv_a=fields.matrix("kv_a", kv_rows, hidden),
        kv_a_bias=fields.optional_vector("kv_a_bias", kv_rows),
        kv_a_norm=(fields.vector("kv_a_norm", latent), LATENT_NORM_EPS),
        k_up=fields.matrix("k_up", c.qk_nope_head_dim, latent, experts=heads),
        k_absorb=fields.matrix("k_absorb", latent, c.qk_nope_head_dim, experts=heads),
        v_up=fields.matrix("v_up", c.v_head_dim, latent, experts=heads),
        o=fields.matrix("o", hidden, heads * c.v_head_dim),
        o_bias=fields.optional_vector("o_bias", hidden),
        scale=c.attention_scale,
    )


def _bottleneck(fields: Fields, config: ModelConfig) -> Bottleneck | None:
    rank = config.q_lora_rank
    if rank is None:
        return None
    norm = (fields.vector("q_a_norm", rank), LATENT_NORM_EPS)
    return fields.matrix("q_a", rank, config.hidden_size), fields.optional_vector("q_a_bias", rank), norm
