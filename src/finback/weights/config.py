"""A model's geometry: one frozen ModelConfig, read from config.json or GGUF metadata, checked before use.

Both sources are hostile until proven otherwise: every value passes a typed getter with a range, and every
relation that later code needs (divisibility, top-k within the groups, even rotary widths) is checked here.
Names are those of Hugging Face's config.json. A key that changes the mathematics is honoured or refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from finback.errors import MalformedFile

if TYPE_CHECKING:
    from finback.weights.checkpoint import Checkpoint

GQA_TYPES = ("llama", "qwen2", "qwen3")
MLA_TYPES = ("deepseek_v2", "deepseek_v3")
KV_ELEMENT_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding. Invariant: ``attention_factor`` is the resolved multiplier of cos and sin."""

    theta: float = 10000.0
    type: str = "none"  # none | linear | llama3 | yarn
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0  # 0: not given
    mscale_all_dim: float = 0.0  # 0: not given
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float = 1.0
    truncate: bool = True  # yarn: round the correction range to whole dimensions


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """Mixture of experts. Invariant: groups divide the experts; the chosen ones hold at least top-k."""

    n_routed_experts: int
    num_experts_per_tok: int
    n_shared_experts: int
    moe_intermediate_size: int
    first_k_dense_replace: int
    moe_layer_freq: int = 1
    scoring_func: Literal["softmax", "sigmoid"] = "softmax"
    group_rule: Literal["none", "max", "top2"] = "none"
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    has_bias: bool = False

    @property
    def shared_intermediate_size(self) -> int:
        """Width of the shared expert: all shared experts run as one."""
        return self.n_shared_experts * self.moe_intermediate_size


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Weights in the main model (no multi-token-prediction layers), and those that one token touches."""

    total: int
    active: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The geometry of one model. Invariant: :func:`check_geometry` accepts it."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int  # GQA: of q, k and v; MLA: the rotary part
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    rope_interleaved: bool = False
    attention_bias: bool = False  # of q, k and v; MLA: of the projections into q's and kv's bottlenecks
    attention_out_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "bfloat16"  # as published: float32 | bfloat16 | float16
    q_lora_rank: int | None = None
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    moe: MoeConfig | None = None
    num_nextn_predict_layers: int = 0  # published, not run
    fp8_block: tuple[int, int] | None = None  # rows, columns per scale; (0, 0): one scale per tensor
    notes: tuple[str, ...] = ()  # what a reader of `show` should know about how the configuration was read

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> ModelConfig:
        """Read and check the configuration that the files carry."""
        from finback.weights import config_gguf, config_hf  # they build this class

        read = config_gguf.read if checkpoint.kind == "gguf" else config_hf.read
        config = read(checkpoint)
        check_geometry(config)
        return config

    @property
    def is_mla(self) -> bool:
        """Whether attention is multi-head latent attention."""
        return self.model_type in MLA_TYPES

    @property
    def family(self) -> str:
        """The architecture family: ``llama`` (grouped-query attention) or ``deepseek`` (latent attention)."""
        return "deepseek" if self.is_mla else "llama"

    @property
    def qk_head_dim(self) -> int:
        """Width of one query head as the scores see it."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim if self.is_mla else self.head_dim

    @property
    def attention_scale(self) -> float:
        """The softmax scale, with MLA's squared YaRN correction."""
        scale = 1 / math.sqrt(self.qk_head_dim)
        if self.is_mla and self.rope.type != "none" and self.rope.mscale_all_dim:
            scale *= yarn_mscale(self.rope.factor, self.rope.mscale_all_dim) ** 2
        return scale

    def is_moe_layer(self, layer: int) -> bool:
        """Whether this layer's feed-forward part is a mixture of experts."""
        moe = self.moe
        return moe is not None and layer >= moe.first_k_dense_replace and layer % moe.moe_layer_freq == 0

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Cache bytes of one token over all layers, for elements of ``dtype``."""
        if self.is_mla:
            width = self.kv_lora_rank + self.qk_rope_head_dim
        else:
            width = 2 * self.num_key_value_heads * self.head_dim
        return self.num_hidden_layers * width * KV_ELEMENT_BYTES[dtype]

    @property
    def parameters(self) -> ParameterCount:
        """Parameters in total and active per token, from the geometry."""
        return _count_parameters(self)


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's attention temperature for a context stretched by ``factor``."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


# ---- parameter counts ----


def _count_parameters(config: ModelConfig) -> ParameterCount:
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    total = active = embeddings + config.hidden_size
    attention = _mla_parameters(config) if config.is_mla else _gqa_parameters(config)
    for layer in range(config.num_hidden_layers):
        common = attention + 2 * config.hidden_size
        mlp = _mlp_parameters(config, layer)
        total += common + mlp.total
        active += common + mlp.active
    return ParameterCount(total, active)


def _gqa_parameters(config: ModelConfig) -> int:
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    count = config.hidden_size * (2 * q + 2 * kv)
    count += (q + 2 * kv) * config.attention_bias + config.hidden_size * config.attention_out_bias
    return count + 2 * config.head_dim * config.qk_norm


def _mla_parameters(config: ModelConfig) -> int:
    hidden, heads, latent = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    q = heads * config.qk_head_dim
    rank = config.q_lora_rank
    query = hidden * q if rank is None else hidden * rank + rank + rank * q
    down = hidden * (latent + config.qk_rope_head_dim) + latent
    up = latent * heads * (config.qk_nope_head_dim + config.v_head_dim)
    bias = ((rank or 0) + latent + config.qk_rope_head_dim) * config.attention_bias
    bias += hidden * config.attention_out_bias
    return query + down + up + heads * config.v_head_dim * hidden + bias


def _mlp_parameters(config: ModelConfig, layer: int) -> ParameterCount:
    if config.moe is None or not config.is_moe_layer(layer):
        dense = 3 * config.hidden_size * config.intermediate_size
        return ParameterCount(dense, dense)
    moe = config.moe
    expert = 3 * config.hidden_size * moe.moe_intermediate_size
    common = config.hidden_size * moe.n_routed_experts + moe.n_routed_experts * moe.has_bias
    common += expert * moe.n_shared_experts
    return ParameterCount(common + expert * moe.n_routed_experts, common + expert * moe.num_experts_per_tok)


def dtype_of_tensors(checkpoint: Checkpoint) -> str:
    """What the matrices say: routers may be wider, and quantised models were made from bfloat16."""
    formats = {info.format for info in checkpoint.tensors.values() if len(info.shape) > 1}
    if formats <= {"f32"}:
        return "float32"
    return "float16" if formats <= {"f32", "f16"} else "bfloat16"


# ---- relations between sizes ----


def check_geometry(config: ModelConfig) -> None:
    """Raise unless the relations between sizes hold that binding, models and kernels rely on."""
    rotary = config.qk_rope_head_dim if config.is_mla else config.head_dim
    _expect(rotary % 2 == 0, f"the rotary width must be even, not {rotary}")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    _expect(heads % kv_heads == 0, f"{heads} attention heads cannot share {kv_heads} key-value heads evenly")
    if config.rope.type == "llama3":
        low, high = config.rope.low_freq_factor, config.rope.high_freq_factor
        _expect(low < high, f"llama3 rope needs low_freq_factor < high_freq_factor, not {low} and {high}")
    if config.moe is not None:
        _check_moe(config.moe)


def _check_moe(moe: MoeConfig) -> None:
    experts, groups = moe.n_routed_experts, moe.n_group
    _expect(experts % groups == 0, f"{experts} experts cannot be cut into {groups} groups")
    _expect(moe.topk_group <= groups, f"topk_group {moe.topk_group} exceeds n_group {groups}")
    reachable = moe.topk_group * (experts // groups)
    _expect(
        moe.num_experts_per_tok <= reachable,
        f"num_experts_per_tok {moe.num_experts_per_tok} exceeds the {reachable} experts of the chosen groups",
    )
    if moe.group_rule == "top2":
        _expect(experts // groups >= 2, "the top-2 group rule needs at least 2 experts per group")


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise MalformedFile(f"the model's configuration contradicts itself: {message}")
