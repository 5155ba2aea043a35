"""deepseek_v2 and deepseek_v3: multi-head latent attention (MLA) and experts (V2-Lite, V2, V3, R1, V3.1).

MLA caches one latent vector and one rotary key per token, shared by all heads. Attention over them has two
forms with the same value. Expanded: keys and values of every head are computed from the latents, which is
cheaper when many queries share them, so prompt tokens use it. Absorbed: the queries are mapped into the
latent space instead, so that a generated token touches nothing but the latents. Which form a token takes
depends on its role alone, never on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finback import kernels
from finback.kernels import Matrix
from finback.models.batch import Batch, Segment
from finback.models.layers import Array, FeedForward, Fields, Layer, LayerCache, Model, Step, mlp, model, moe
from finback.models.rope import Tables, rotary
from finback.weights.config import ModelConfig

# The published models normalise the low-rank projections with this constant, whatever rms_norm_eps says.
LATENT_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """Queries pass through a narrow, normalised projection (V2 and V3; V2-Lite has none)."""

    q_a: Matrix
    bias: Array | None
    norm: Array


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """MLA. A head's query is [nope | rope]; a cache entry is [latent | rotary key]."""

    config: ModelConfig
    bottleneck: Bottleneck | None
    q: Matrix  # hidden state, or bottleneck -> queries
    kv_a: Matrix  # hidden -> [latent | rotary key]
    kv_a_bias: Array | None
    kv_a_norm: Array
    k_up: Matrix  # per head: latent -> key
    k_absorb: Matrix  # per head: query -> latent, the transpose of k_up
    v_up: Matrix  # per head: latent -> value, so also attended latent -> head output
    o: Matrix
    o_bias: Array | None
    scale: float
    expanded_bytes: int = 256 << 20  # of keys and values at a time

    def __call__(self, h: Array, x: Array, step: Step, cache: LayerCache) -> Array:
        q, latents = self._project(h, step.rope)
        batch = step.batch
        kernels.store_rows(cache["latent"], latents, batch.slots)
        context = np.empty((len(h), self.config.num_attention_heads, self.config.v_head_dim), np.float32)
        for segment in batch.prompt_segments:
            self._expanded(q, segment, batch, cache, context[segment.start : segment.stop])
        if len(step.generated):
            context[step.generated] = self._absorbed(q, step.generated, batch, cache)
        return kernels.linear(context.reshape(len(h), -1), [self.o], bias=[self.o_bias], add=x)[0]

    def _project(self, h: Array, rope: Tables) -> tuple[Array, Array]:
        c, n = self.config, len(h)
        q, latents = self._from_hidden(h)
        q = q.reshape(n, c.num_attention_heads, -1)
        kernels.rope(q, *rope, interleaved=c.rope_interleaved, start=c.qk_nope_head_dim)
        kernels.rope(latents.reshape(n, 1, -1), *rope, interleaved=c.rope_interleaved, start=c.kv_lora_rank)
        compressed = np.ascontiguousarray(latents[:, : c.kv_lora_rank])
        latents[:, : c.kv_lora_rank] = kernels.rms_norm(compressed, self.kv_a_norm, LATENT_NORM_EPS)
        return q, latents

    def _from_hidden(self, h: Array) -> tuple[Array, Array]:
        if self.bottleneck is None:
            q, latents = kernels.linear(h, [self.q, self.kv_a], bias=[None, self.kv_a_bias])
            return q, latents
        narrow = self.bottleneck
        q_a, latents = kernels.linear(h, [narrow.q_a, self.kv_a], bias=[narrow.bias, self.kv_a_bias])
        return kernels.linear(kernels.rms_norm(q_a, narrow.norm, LATENT_NORM_EPS), [self.q])[0], latents

    def _expanded(self, q: Array, segment: Segment, batch: Batch, cache: LayerCache, out: Array) -> None:
        # The segment's own latents are read back too: attention sees what the cache holds, at its precision.
        slots = batch.context_slots(segment, cache["latent"].shape[1])
        latents, k_rope = self._split(kernels.load_rows(cache["latent"], slots), self.config.kv_lora_rank)
        for heads in self._head_groups(segment.context):
            out[:, heads] = kernels.mla_prefill(
                np.ascontiguousarray(q[segment.start : segment.stop, heads]),
                kernels.head_linear(latents, _of_heads(self.k_up, heads)),
                k_rope,
                kernels.head_linear(latents, _of_heads(self.v_up, heads)),
                first_position=segment.first_position,
                scale=self.scale,
            )

    def _head_groups(self, context: int) -> Iterator[slice]:
        """All heads at once, or as many as may be expanded over a long context."""
        head_bytes = 4 * context * (self.config.qk_nope_head_dim + self.config.v_head_dim)
        step, heads = max(self.expanded_bytes // head_bytes, 1), self.config.num_attention_heads
        return (slice(first, min(first + step, heads)) for first in range(0, heads, step))

    def _absorbed(self, q: Array, rows: NDArray[np.int64], batch: Batch, cache: LayerCache) -> Array:
        q_nope, q_rope = self._split(q[rows], self.config.qk_nope_head_dim)
        attended = kernels.mla_attention(
            kernels.head_linear(q_nope, self.k_absorb),
            q_rope,
            cache["latent"],
            block_tables=batch.block_tables,
            seq_ids=batch.seq_ids[rows],
            positions=batch.positions[rows],
            scale=self.scale,
        )
        return kernels.head_linear(attended, self.v_up)

    @staticmethod
    def _split(x: Array, at: int) -> tuple[Array, Array]:
        return np.ascontiguousarray(x[..., :at]), np.ascontiguousarray(x[..., at:])

    def cache_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"latent": (self.config.kv_lora_rank + self.config.qk_rope_head_dim,)}


def _of_heads(per_head: Matrix, heads: slice) -> Matrix:
    """Some heads of a per-head matrix: a view."""
    size = per_head.nbytes // per_head.experts
    data = per_head.data[heads.start * size : heads.stop * size]
    return Matrix(per_head.format, per_head.rows, per_head.cols, data, heads.stop - heads.start)


def build(config: ModelConfig, fields: Fields) -> Model:
    """A deepseek_v2 or deepseek_v3 model over bound weights."""
    layers = [_layer(config, fields.below(f"layers.{i}.")) for i in range(config.num_hidden_layers)]
    return model(config, fields, layers, rotary(config.rope, config.qk_rope_head_dim))


def _layer(config: ModelConfig, fields: Fields) -> Layer:
    hidden = config.hidden_size
    return Layer(
        attn_norm=fields.vector("attn_norm", hidden),
        attention=_attention(config, fields.below("attn.")),
        mlp_norm=fields.vector("mlp_norm", hidden),
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
        kv_a_norm=fields.vector("kv_a_norm", latent),
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
    return Bottleneck(
        q_a=fields.matrix("q_a", rank, config.hidden_size),
        bias=fields.optional_vector("q_a_bias", rank),
        norm=fields.vector("q_a_norm", rank),
    )
