"""What the families share: the decoder loop, both kinds of feed-forward layer, typed access to bound weights.

A layer has two parts, attention and feed-forward. Each adds to the residual stream ``x`` (float32 [rows, hidden]).
Every row is computed from that row alone; all that rows of a sequence share is the cache. Parts are bound to their
weights and the cache before the first step, and a step runs them all in one native call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from finback import kernels
from finback.errors import MissingTensor, ShapeMismatch
from finback.kernels import Matrix, Norm, Part
from finback.models.batch import Batch
from finback.models.rope import Rotary
from finback.weights.config import ModelConfig, MoeConfig

Array: TypeAlias = NDArray[np.float32]
LayerCache: TypeAlias = Mapping[str, NDArray[np.generic]]


class Attention(Protocol):
    """One layer's attention over the cache."""

    def bind(self, norm: Norm, cache: LayerCache) -> Part:
        """``x`` plus attention of its normalised rows, whose keys and values go to the cache first."""

    def cache_shapes(self) -> dict[str, tuple[int, ...]]:
        """What one token keeps in this layer's cache: name -> shape."""


class FeedForward(Protocol):
    """One layer's feed-forward part."""

    def bind(self, norm: Norm) -> Part:
        """``x`` plus the feed-forward of its normalised rows."""


@dataclass(frozen=True, slots=True)
class Mlp:
    """Dense SwiGLU."""

    gate: Matrix
    up: Matrix
    down: Matrix

    def bind(self, norm: Norm) -> Part:
        return kernels.GatedNetwork(self.gate, self.up, self.down, norm=norm)


@dataclass(frozen=True, slots=True)
class Moe:
    """Mixture of experts: a router picks some for each row, the shared expert runs for every row."""

    config: MoeConfig
    router: Matrix
    router_bias: Array | None
    gate: Matrix
    up: Matrix
    down: Matrix
    shared: tuple[Matrix, Matrix, Matrix] | None

    def bind(self, norm: Norm) -> Part:
        c = self.config
        return kernels.RoutedNetwork(
            self.router,
            self.gate,
            self.up,
            self.down,
            shared=self.shared,
            norm=norm,
            bias=self.router_bias,
            scoring=c.scoring_func,
            top_k=c.num_experts_per_tok,
            groups=c.n_group,
            top_groups=c.topk_group,
            group_rule=c.group_rule,
            normalize=c.norm_topk_prob,
            scale=c.routed_scaling_factor,
        )


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer."""

    attn_norm: Norm
    attention: Attention
    mlp_norm: Norm
    feed_forward: FeedForward

    def bind(self, cache: LayerCache) -> tuple[Part, Part]:
        """Both parts, in order."""
        return self.attention.bind(self.attn_norm, cache), self.feed_forward.bind(self.mlp_norm)


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder, ready to run: embedding, layers, final norm, head (the embedding again where tied)."""

    config: ModelConfig
    embed: Matrix = field(repr=False)
    layers: Sequence[Layer] = field(repr=False)
    norm: Norm = field(repr=False)
    head: Matrix = field(repr=False)
    rotary: Rotary = field(repr=False)

    def cache_layout(self) -> list[dict[str, tuple[int, ...]]]:
        """Per layer: the arrays that the cache needs, by name, with the shape of one token's entry."""
        return [layer.attention.cache_shapes() for layer in self.layers]

    def bind(self, cache: Sequence[LayerCache]) -> list[Part]:
        """The layers over this cache, for :meth:`forward`."""
        layers = zip(self.layers, cache, strict=True)
        return [part for layer, layer_cache in layers for part in layer.bind(layer_cache)]

    def forward(self, batch: Batch, parts: Sequence[Part]) -> Array:
        """Run one step: fill the cache at the batch's slots, return logits [m, vocab] of its logit rows.

        ``parts`` come from :meth:`bind`.
        """
        cos, sin = self.rotary.tables(batch.positions)
        x = kernels.run_parts(
            parts,
            kernels.take_rows(self.embed, batch.tokens),
            slots=batch.slots,
            cos=cos,
            sin=sin,
            block_tables=batch.block_tables,
            seq_ids=batch.seq_ids,
            positions=batch.positions,
            prompts=batch.prompts,
        )
        return self._logits(x[batch.logit_rows])

    def _logits(self, x: Array) -> Array:
        if not len(x):
            return np.empty((0, self.config.vocab_size), np.float32)
        return kernels.linear(x, [self.head], norm=self.norm)[0]


class Fields:
    """Bound weights by canonical name below a prefix; refuses what is absent or of another shape."""

    def __init__(self, weights: Mapping[str, Matrix | Array], prefix: str = "") -> None:
        self._weights = weights
        self._prefix = prefix

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._weights

    def below(self, prefix: str) -> Fields:
        """The fields whose names continue with ``prefix``."""
        return Fields(self._weights, self._prefix + prefix)

    def matrix(self, name: str, rows: int, cols: int, *, experts: int = 1) -> Matrix:
        """The weight matrix ``name``, of the stated geometry."""
        found = self._find(name)
        if not isinstance(found, Matrix) or (found.experts, found.rows, found.cols) != (experts, rows, cols):
            raise self._mismatch(name, (experts, rows, cols), found)
        return found

    def vector(self, name: str, size: int) -> Array:
        """The float32 vector ``name``."""
        found = self._find(name)
        if isinstance(found, Matrix) or found.shape != (size,):
            raise self._mismatch(name, (size,), found)
        return found

    def optional_vector(self, name: str, size: int) -> Array | None:
        """The float32 vector ``name``, or None where the model has none."""
        return self.vector(name, size) if name in self else None

    def _find(self, name: str) -> Matrix | Array:
        if name not in self:
            raise MissingTensor(f"the model has no weights for {self._prefix + name}")
        return self._weights[self._prefix + name]

    def _mismatch(self, name: str, expected: tuple[int, ...], found: Matrix | Array) -> ShapeMismatch:
        actual = (found.experts, found.rows, found.cols) if isinstance(found, Matrix) else found.shape
        return ShapeMismatch(f"{self._prefix + name} has shape {actual}, but the model needs {expected}")


def mlp(fields: Fields, hidden: int, inner: int) -> Mlp:
    """A dense feed-forward layer from the fields ``mlp.*``."""
    return Mlp(
        gate=fields.matrix("mlp.gate", inner, hidden),
        up=fields.matrix("mlp.up", inner, hidden),
        down=fields.matrix("mlp.down", hidden, inner),
    )


def moe(fields: Fields, hidden: int, config: MoeConfig) -> Moe:
    """A mixture of experts from the fields ``moe.*``."""
    inner, experts = config.moe_intermediate_size, config.n_routed_experts
    return Moe(
        config=config,
        router=fields.matrix("moe.router", experts, hidden),
        router_bias=fields.optional_vector("moe.router_bias", experts),
        gate=fields.matrix("moe.gate", inner, hidden, experts=experts),
        up=fields.matrix("moe.up", inner, hidden, experts=experts),
        down=fields.matrix("moe.down", hidden, inner, experts=experts),
        shared=_shared_expert(fields, hidden, inner * config.n_shared_experts),
    )


def _shared_expert(fields: Fields, hidden: int, inner: int) -> tuple[Matrix, Matrix, Matrix] | None:
    if not inner:
        return None
    gate = fields.matrix("moe.shared_gate", inner, hidden)
    up = fields.matrix("moe.shared_up", inner, hidden)
    return gate, up, fields.matrix("moe.shared_down", hidden, inner)


def model(config: ModelConfig, fields: Fields, layers: Sequence[Layer], rotary: Rotary) -> Model:
    """The frame around a family's layers."""
    vocab, hidden = config.vocab_size, config.hidden_size
    embed = fields.matrix("embed", vocab, hidden)
    head = embed if config.tie_word_embeddings else fields.matrix("head", vocab, hidden)
    norm = (fields.vector("norm", hidden), config.rms_norm_eps)
    return Model(config, embed, tuple(layers), norm, head, rotary)
