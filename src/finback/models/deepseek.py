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
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finback import kernels
from finback.kernels import Matrix, Norm
from finback.models.batch import Batch, Segment
from finback.models.layers import Array, Call, FeedForward, Fields, Layer, LayerCache, Model, Step, mlp, model, moe
from finback.models.rope import rotary
from finback.weights.config import ModelConfig

# The published models normalise the low-rank projections with this constant, whatever rms_norm_eps says.
LATENT_NORM_EPS = 1e-6
ABSORBED_FROM = 1024  # a prompt's position, on tile registers: about where both forms cost the same for 512 tokens


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """Queries pass through a narrow, normalised projection (V2 and V3; V2-Lite has none)."""

    q_a: Matrix
    bias: Array | None
    norm: Norm


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """MLA. A head's query is [nope | rope]; a cache entry is [latent | rotary key]."""

    config: ModelConfig
    bottleneck: Bottleneck | None
    q: Matrix  # hidden state, or bottleneck -> queries
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

    def bind(self, norm: Norm, cache: LayerCache) -> Call:
        on_tiles = kernels.latents_on_tiles(cache["latent"], self.config.kv_lora_rank)
        absorbed_from = ABSORBED_FROM if on_tiles else sys.maxsize
        return lambda x, step: self._add_to(x, norm, step, cache, absorbed_from)

    def _add_to(self, x: Array, norm: Norm, step: Step, cache: LayerCache, absorbed_from: int) -> Array:
        c, n, batch = self.config, len(x), step.batch
        q, latents = self._from_hidden(x, norm)
        cos, sin = step.rope
        kernels.cache_latents(
            q,
            latents,
            cache["latent"],
            slots=batch.slots,
            cos=cos,
            sin=sin,
            interleaved=c.rope_interleaved,
            head_dim=c.qk_head_dim,
            norm=self.kv_a_norm,
        )
        context = self._attend(q.reshape(n, c.num_attention_heads, -1), batch, cache, absorbed_from)
        return kernels.linear(context.reshape(n, -1), [self.o], bias=[self.o_bias], add=x)[0]

    def _attend(self, q: Array, batch: Batch, cache: LayerCache, absorbed_from: int) -> Array:
        expanded = batch.prompts_before(absorbed_from)
        if not expanded:
            return self._absorbed(q, batch.seq_ids, batch.positions, batch, cache)
        context = np.empty((*q.shape[:2], self.config.v_head_dim), np.float32)
        others = np.ones(len(q), bool)
        for segment in expanded:
            rows = slice(segment.start, segment.stop)
            self._expanded(q, segment, batch, cache, context[rows])
            others[rows] = False
        if others.any():
            context[others] = self._absorbed(q[others], batch.seq_ids[others], batch.positions[others], batch, cache)
        return context

    def _from_hidden(self, x: Array, norm: Norm) -> tuple[Array, Array]:
        if self.bottleneck is None:
            q, latents = kernels.linear(x, [self.q, self.kv_a], norm=norm, bias=[None, self.kv_a_bias])
            return q, latents
        narrow = self.bottleneck
        q_a, latents = kernels.linear(x, [narrow.q_a, self.kv_a], norm=norm, bias=[narrow.bias, self.kv_a_bias])
        return kernels.linear(q_a, [self.q], norm=narrow.norm)[0], latents

    def _expanded(self, q: Array, segment: Segment, batch: Batch, cache: LayerCache, out: Array) -> None:
        # The segment's own latents are read back too: attention sees what the cache holds, at its precision.
        slots = batch.context_slots(segment, cache["latent"].shape[1])
        entries, rank = kernels.load_rows(cache["latent"], slots), self.config.kv_lora_rank
        latents, k_rope = np.ascontiguousarray(entries[:, :rank]), np.ascontiguousarray(entries[:, rank:])
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
        step, heads = max(self.working_bytes // head_bytes, 1), self.config.num_attention_heads
        return (slice(first, min(first + step, heads)) for first in range(0, heads, step))

    def _absorbed(
        self, q: Array, seq_ids: NDArray[np.int32], positions: NDArray[np.int32], batch: Batch, cache: LayerCache
    ) -> Array:
        config = self.config
        most = max(self.working_bytes // (8 * config.num_attention_heads * config.kv_lora_rank), 1)
        parts = [
            kernels.mla_decode(
                q[first : first + most],
                self.k_absorb,
                self.v_up,
                cache["latent"],
                block_tables=batch.block_tables,
                seq_ids=seq_ids[first : first + most],
                positions=positions[first : first + most],
                scale=self.scale,
            )
            for first in range(0, len(q), most)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

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
    return Bottleneck(
        q_a=fields.matrix("q_a", rank, config.hidden_size),
        bias=fields.optional_vector("q_a_bias", rank),
        norm=(fields.vector("q_a_norm", rank), LATENT_NORM_EPS),
    )
