"""A model's geometry: one frozen ModelConfig, read from config.json or GGUF metadata, checked before use.

Both sources are hostile until proven otherwise: every value passes a typed getter with a range, and every
relation that later code needs (divisibility, top-k within the groups, even rotary widths) is checked here.
Names are those of Hugging Face's config.json. A key that changes the mathematics is honoured or refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finback.errors import MalformedFile, ShapeMismatch, UnsupportedModel

if TYPE_CHECKING:
    from finback.weights.checkpoint import Checkpoint

GQA_TYPES = ("llama", "qwen2", "qwen3")
MLA_TYPES = ("deepseek_v2", "deepseek_v3")
GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3", "deepseek2")
RUNS = f"Finback runs {', '.join(GQA_TYPES + MLA_TYPES)} (GGUF: {', '.join(GGUF_ARCHITECTURES)})"
KV_ELEMENT_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "float32": 4, "bfloat16": 2, "float16": 2}

# Bounds far above every published model; they keep products of sizes within 64 bits and loops finite.
MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20
MAX_HEADS = 1 << 14
MAX_EXPERTS = 1 << 14
MAX_VOCAB = 1 << 24
MAX_CONTEXT = 1 << 30
MIN_THETA = 1.001  # its logarithm is a divisor


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
    scoring_func: str = "softmax"  # softmax | sigmoid
    group_rule: str = "none"  # none | max | top2
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
    attention_bias: bool = False  # of q, k and v
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
        read = _from_gguf if checkpoint.kind == "gguf" else _from_hf
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
        return self.moe is not None and layer >= self.moe.first_k_dense_replace

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
    return query + down + up + heads * config.v_head_dim * hidden


def _mlp_parameters(config: ModelConfig, layer: int) -> ParameterCount:
    if config.moe is None or not config.is_moe_layer(layer):
        dense = 3 * config.hidden_size * config.intermediate_size
        return ParameterCount(dense, dense)
    moe = config.moe
    expert = 3 * config.hidden_size * moe.moe_intermediate_size
    common = config.hidden_size * moe.n_routed_experts + moe.n_routed_experts * moe.has_bias
    common += expert * moe.n_shared_experts
    return ParameterCount(common + expert * moe.n_routed_experts, common + expert * moe.num_experts_per_tok)


# ---- typed access to untrusted key-values ----


class _Fields:
    """Typed, ranged access to one mapping of untrusted values. ``None`` counts as absent."""

    def __init__(self, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
        self._values = values
        self._source = source
        self._prefix = prefix

    def get(self, key: str) -> Any:
        return self._values.get(self._prefix + key)

    def has(self, key: str) -> bool:
        return self.get(key) is not None

    def bad(self, key: str, wanted: str, value: Any) -> MalformedFile:
        return MalformedFile(f"{self._source}: {self._prefix}{key} must be {wanted}, not {_shown(value)}")

    def require(self, key: str) -> None:
        if not self.has(key):
            raise MalformedFile(f"{self._source} has no {self._prefix}{key}, which this architecture needs")

    def integer(self, key: str, low: int, high: int, *, default: int | None = None) -> int:
        """A whole number in [low, high]; without a default the key is required."""
        value = self.get(key)
        if value is None:
            if default is None:
                self.require(key)
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.bad(key, f"a whole number from {low} to {high}", value)
        return value

    def number(self, key: str, low: float, high: float, *, default: float | None = None) -> float:
        """A finite number in [low, high]; without a default the key is required."""
        value = self.get(key)
        if value is None:
            if default is None:
                self.require(key)
            value = default
        # The comparison is false for NaN, and a huge int compares without overflowing.
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise self.bad(key, f"a number from {low:g} to {high:g}", value)
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.bad(key, "true or false", value)
        return value

    def text(self, key: str, *, default: str) -> str:
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self.bad(key, "a string", value)
        return value

    def token_ids(self, key: str, vocab_size: int) -> tuple[int, ...]:
        """Nothing, one token id, or a list of them."""
        value = self.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if len(ids) > 1024:
            raise self.bad(key, "at most 1024 token ids", value)
        for token in ids:
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < MAX_VOCAB:
                raise self.bad(key, f"token ids below {MAX_VOCAB}", value)
        # Ids beyond the embedding can never be generated; some published files carry them.
        return tuple(token for token in ids if token < vocab_size)

    def section(self, key: str) -> _Fields | None:
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.bad(key, "an object", value)
        return _Fields(value, f"{self._source}: {key}")

    def refuse_unless(self, condition: object, key: str, why: str) -> None:
        if not condition:
            shown = _shown(self.get(key))
            raise UnsupportedModel(f"{self._source}: {self._prefix}{key} = {shown} {why}", hint=RUNS)


def _shown(value: Any) -> str:
    """An untrusted value for a message: short, and safe for numbers too long to print."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


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


# ---- config.json ----


def _from_hf(checkpoint: Checkpoint) -> ModelConfig:
    fields = _Fields(checkpoint.hf_config, "config.json")
    model_type = fields.text("model_type", default="")
    if model_type not in GQA_TYPES + MLA_TYPES:
        raise UnsupportedModel(f"config.json: model_type {_shown(model_type)} is not supported", hint=RUNS)
    activation = fields.text("hidden_act", default="silu")
    fields.refuse_unless(activation == "silu", "hidden_act", "is not supported")
    fields.refuse_unless(not fields.flag("mlp_bias", default=False), "mlp_bias", "is not supported")
    own = _hf_mla(fields, model_type) if model_type in MLA_TYPES else _hf_gqa(fields, model_type)
    tied = fields.flag("tie_word_embeddings", default=False)
    return ModelConfig(
        model_type=model_type,
        **_hf_common(fields),
        **own,
        tie_word_embeddings=tied and "lm_head.weight" not in checkpoint.tensors,
        dtype=_hf_dtype(fields, checkpoint),
        fp8_block=_hf_fp8_block(fields),
    )


def _hf_common(fields: _Fields) -> dict[str, Any]:
    vocab_size = fields.integer("vocab_size", 1, MAX_VOCAB)
    bos = fields.token_ids("bos_token_id", vocab_size)
    return {
        "vocab_size": vocab_size,
        "hidden_size": fields.integer("hidden_size", 1, MAX_WIDTH),
        "intermediate_size": fields.integer("intermediate_size", 1, MAX_WIDTH),
        "num_hidden_layers": fields.integer("num_hidden_layers", 1, MAX_LAYERS),
        "num_attention_heads": fields.integer("num_attention_heads", 1, MAX_HEADS),
        "rms_norm_eps": fields.number("rms_norm_eps", 0, 1, default=1e-6),
        "max_position_embeddings": fields.integer("max_position_embeddings", 1, MAX_CONTEXT),
        "rope": _hf_rope(fields),
        "bos_token_id": bos[0] if bos else None,
        "eos_token_ids": fields.token_ids("eos_token_id", vocab_size),
    }


def _hf_gqa(fields: _Fields, model_type: str) -> dict[str, Any]:
    _refuse_sliding_window(fields)
    heads = fields.integer("num_attention_heads", 1, MAX_HEADS)
    # Qwen3's class default is 128 whatever the hidden size; the others divide.
    divided = fields.integer("hidden_size", 1, MAX_WIDTH) // heads
    default = 128 if model_type == "qwen3" else max(divided, 1)
    bias = model_type == "qwen2" or fields.flag("attention_bias", default=False)
    return {
        "num_key_value_heads": fields.integer("num_key_value_heads", 1, MAX_HEADS, default=heads),
        "head_dim": fields.integer("head_dim", 1, MAX_WIDTH, default=default),
        "attention_bias": bias,
        "attention_out_bias": bias and model_type != "qwen2",
        "qk_norm": model_type == "qwen3",
    }


def _refuse_sliding_window(fields: _Fields) -> None:
    fields.refuse_unless(
        not fields.flag("use_sliding_window", default=False), "use_sliding_window", "is not supported"
    )
    kinds = fields.get("layer_types")
    if kinds is not None and not isinstance(kinds, list):
        raise fields.bad("layer_types", "a list", kinds)
    full = all(kind == "full_attention" for kind in kinds or ())
    fields.refuse_unless(full, "layer_types", "is not supported")


def _hf_mla(fields: _Fields, model_type: str) -> dict[str, Any]:
    bias = fields.flag("attention_bias", default=False)
    fields.refuse_unless(not bias, "attention_bias", "is not supported with latent attention")
    rope_dim = fields.integer("qk_rope_head_dim", 1, MAX_WIDTH)
    has_q_lora = fields.has("q_lora_rank")
    moe, notes = _hf_moe(fields, model_type)
    return {
        "num_key_value_heads": fields.integer("num_attention_heads", 1, MAX_HEADS),
        "head_dim": rope_dim,
        "rope_interleaved": model_type == "deepseek_v2" or fields.flag("rope_interleave", default=True),
        "q_lora_rank": fields.integer("q_lora_rank", 1, MAX_WIDTH) if has_q_lora else None,
        "kv_lora_rank": fields.integer("kv_lora_rank", 1, MAX_WIDTH),
        "qk_nope_head_dim": fields.integer("qk_nope_head_dim", 1, MAX_WIDTH),
        "qk_rope_head_dim": rope_dim,
        "v_head_dim": fields.integer("v_head_dim", 1, MAX_WIDTH),
        "moe": moe,
        "num_nextn_predict_layers": fields.integer("num_nextn_predict_layers", 0, MAX_LAYERS, default=0),
        "notes": notes,
    }


def _hf_moe(fields: _Fields, model_type: str) -> tuple[MoeConfig | None, tuple[str, ...]]:
    if not fields.has("n_routed_experts"):
        return None, ()
    # The published models all have 1; the reference implementations disagree about what other values mean.
    every = fields.integer("moe_layer_freq", 1, MAX_LAYERS, default=1)
    fields.refuse_unless(every == 1, "moe_layer_freq", "is not 1")
    routing, notes = (_hf_routing_v2 if model_type == "deepseek_v2" else _hf_routing_v3)(fields)
    moe = MoeConfig(
        n_routed_experts=fields.integer("n_routed_experts", 1, MAX_EXPERTS),
        num_experts_per_tok=fields.integer("num_experts_per_tok", 1, MAX_EXPERTS),
        n_shared_experts=fields.integer("n_shared_experts", 0, MAX_EXPERTS, default=0),
        moe_intermediate_size=fields.integer("moe_intermediate_size", 1, MAX_WIDTH),
        first_k_dense_replace=fields.integer("first_k_dense_replace", 0, MAX_LAYERS, default=0),
        routed_scaling_factor=fields.number("routed_scaling_factor", -1e6, 1e6, default=1.0),
        **routing,
    )
    return moe, notes


def _hf_routing_v2(fields: _Fields) -> tuple[dict[str, Any], tuple[str, ...]]:
    method = fields.text("topk_method", default="greedy")
    known = ("greedy", "group_limited_greedy")
    fields.refuse_unless(method in known, "topk_method", "is not one of deepseek_v2")
    scoring = fields.text("scoring_func", default="softmax")
    fields.refuse_unless(scoring == "softmax", "scoring_func", "is not one of deepseek_v2")
    notes: tuple[str, ...] = ()
    if fields.flag("norm_topk_prob", default=False):
        # As transformers computes deepseek_v2; no published model of this type sets it.
        notes = ("norm_topk_prob is set, and has no effect for deepseek_v2",)
    if method == "greedy":
        return {"scoring_func": "softmax", "group_rule": "none"}, notes
    groups = fields.integer("n_group", 1, MAX_EXPERTS)
    chosen = fields.integer("topk_group", 1, MAX_EXPERTS)
    rule = "max" if groups > 1 else "none"
    return {"scoring_func": "softmax", "group_rule": rule, "n_group": groups, "topk_group": chosen}, notes


def _hf_routing_v3(fields: _Fields) -> tuple[dict[str, Any], tuple[str, ...]]:
    method = fields.text("topk_method", default="noaux_tc")
    fields.refuse_unless(method == "noaux_tc", "topk_method", "is not one of deepseek_v3")
    scoring = fields.text("scoring_func", default="sigmoid")
    fields.refuse_unless(scoring == "sigmoid", "scoring_func", "is not one of deepseek_v3")
    groups = fields.integer("n_group", 1, MAX_EXPERTS, default=1)
    routing = {
        "scoring_func": "sigmoid",
        # One group is no choice; and its two best experts need not exist.
        "group_rule": "top2" if groups > 1 else "none",
        "n_group": groups,
        "topk_group": fields.integer("topk_group", 1, MAX_EXPERTS, default=groups),
        "norm_topk_prob": fields.flag("norm_topk_prob", default=True),
        "has_bias": True,
    }
    return routing, ()


def _hf_rope(fields: _Fields) -> RopeConfig:
    """Both spellings: ``rope_theta`` + ``rope_scaling``, and ``rope_parameters`` that holds everything."""
    theta = fields.number("rope_theta", MIN_THETA, 1e12, default=10000.0)
    partial = fields.number("partial_rotary_factor", 0, 1, default=1.0)
    fields.refuse_unless(partial == 1.0, "partial_rotary_factor", "is not supported")
    scaling = fields.section("rope_scaling") or fields.section("rope_parameters")
    if scaling is None:
        return RopeConfig(theta=theta)
    partial = scaling.number("partial_rotary_factor", 0, 1, default=1.0)
    scaling.refuse_unless(partial == 1.0, "partial_rotary_factor", "is not supported")
    theta = scaling.number("rope_theta", MIN_THETA, 1e12, default=theta)
    kind = scaling.text("rope_type", default=scaling.text("type", default="default"))
    builders = {"default": _rope_plain, "linear": _rope_linear, "llama3": _rope_llama3, "yarn": _rope_yarn}
    key = "rope_type" if scaling.has("rope_type") else "type"
    scaling.refuse_unless(kind in builders, key, f"is not one of {', '.join(builders)}")
    context = fields.integer("max_position_embeddings", 1, MAX_CONTEXT)
    # A value beside the section wins over one inside it, as in transformers.
    original = scaling.integer("original_max_position_embeddings", 1, MAX_CONTEXT, default=context)
    original = fields.integer("original_max_position_embeddings", 1, MAX_CONTEXT, default=original)
    return builders[kind](scaling, theta, original, context)


def _rope_plain(scaling: _Fields, theta: float, original: int, context: int) -> RopeConfig:
    return RopeConfig(theta=theta)


def _rope_linear(scaling: _Fields, theta: float, original: int, context: int) -> RopeConfig:
    return RopeConfig(theta=theta, type="linear", factor=scaling.number("factor", 1e-3, 1e6))


def _rope_llama3(scaling: _Fields, theta: float, original: int, context: int) -> RopeConfig:
    return RopeConfig(
        theta=theta,
        type="llama3",
        factor=scaling.number("factor", 1e-3, 1e6),
        original_max_position_embeddings=original,
        low_freq_factor=scaling.number("low_freq_factor", 1e-3, 1e6),
        high_freq_factor=scaling.number("high_freq_factor", 1e-3, 1e6),
    )


def _rope_yarn(scaling: _Fields, theta: float, original: int, context: int) -> RopeConfig:
    factor = scaling.number("factor", 1e-3, 1e6, default=context / original)
    mscale = scaling.number("mscale", 0, 1e3, default=0.0)
    mscale_all_dim = scaling.number("mscale_all_dim", 0, 1e3, default=0.0)
    if mscale and mscale_all_dim:
        implied = yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)
    else:
        implied = yarn_mscale(factor)
    return RopeConfig(
        theta=theta,
        type="yarn",
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=scaling.number("beta_fast", 0, 1e6, default=32.0) or 32.0,
        beta_slow=scaling.number("beta_slow", 0, 1e6, default=1.0) or 1.0,
        mscale=mscale,
        mscale_all_dim=mscale_all_dim,
        attention_factor=scaling.number("attention_factor", 0, 1e3, default=implied),
        truncate=scaling.flag("truncate", default=True),
    )


def _hf_dtype(fields: _Fields, checkpoint: Checkpoint) -> str:
    key = "dtype" if fields.has("dtype") else "torch_dtype"
    name = fields.text(key, default="").removeprefix("torch.")
    if not name:
        return _dtype_of_tensors(checkpoint)
    if name not in ("float32", "bfloat16", "float16"):
        raise UnsupportedModel(f"config.json: {key} {name[:60]!r} is not float32, bfloat16 or float16")
    return name


def _dtype_of_tensors(checkpoint: Checkpoint) -> str:
    """What the matrices say: routers may be wider, and quantised models were made from bfloat16."""
    formats = {info.format for info in checkpoint.tensors.values() if len(info.shape) > 1}
    if formats <= {"f32"}:
        return "float32"
    return "float16" if formats <= {"f32", "f16"} else "bfloat16"


def _hf_fp8_block(fields: _Fields) -> tuple[int, int] | None:
    section = fields.section("quantization_config")
    if section is None:
        return None
    method = section.text("quant_method", default="")
    section.refuse_unless(method == "fp8", "quant_method", "cannot be read (only fp8 can)")
    section.refuse_unless(section.text("fmt", default="e4m3") == "e4m3", "fmt", "is not e4m3")
    scheme = section.text("activation_scheme", default="dynamic")
    section.refuse_unless(scheme == "dynamic", "activation_scheme", "is not dynamic")
    size = section.get("weight_block_size")
    if size is None:
        return (0, 0)
    if not isinstance(size, list) or len(size) != 2 or not all(_is_block_side(side) for side in size):
        raise section.bad("weight_block_size", "two whole numbers from 1 to 65536", size)
    return (size[0], size[1])


def _is_block_side(side: object) -> bool:
    return isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= 1 << 16


# ---- GGUF metadata ----


def _from_gguf(checkpoint: Checkpoint) -> ModelConfig:
    general = _Fields(checkpoint.metadata, "GGUF metadata")
    architecture = general.text("general.architecture", default="")
    if architecture not in GGUF_ARCHITECTURES:
        raise UnsupportedModel(f"GGUF architecture {_shown(architecture)} is not supported", hint=RUNS)
    fields = _Fields(checkpoint.metadata, "GGUF metadata", f"{architecture}.")
    vocab_size = _gguf_vocab_size(checkpoint, fields)
    is_mla = architecture == "deepseek2"
    own = _gguf_mla(fields, checkpoint) if is_mla else _gguf_gqa(fields, checkpoint, architecture)
    return ModelConfig(
        vocab_size=vocab_size,
        **_gguf_common(fields, general, vocab_size),
        **own,
        tie_word_embeddings="output.weight" not in checkpoint.tensors,
        dtype=_dtype_of_tensors(checkpoint),
    )


def _gguf_vocab_size(checkpoint: Checkpoint, fields: _Fields) -> int:
    """The embedding's rows: the metadata key is optional, and in some published files wrong."""
    info = checkpoint.tensors.get("token_embd.weight")
    if info is None:
        return fields.integer("vocab_size", 1, MAX_VOCAB)
    if len(info.shape) != 2 or not 1 <= info.shape[0] <= MAX_VOCAB:
        raise ShapeMismatch(f"token_embd.weight has shape {list(info.shape)}, expected [vocabulary, hidden]")
    return info.shape[0]


def _gguf_common(fields: _Fields, general: _Fields, vocab_size: int) -> dict[str, Any]:
    bos = general.token_ids("tokenizer.ggml.bos_token_id", vocab_size)
    ends = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    eos = tuple(token for key in ends for token in general.token_ids(key, vocab_size))
    return {
        "hidden_size": fields.integer("embedding_length", 1, MAX_WIDTH),
        "intermediate_size": _gguf_uniform(fields, "feed_forward_length", MAX_WIDTH),
        "num_attention_heads": _gguf_uniform(fields, "attention.head_count", MAX_HEADS),
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon", 0, 1),
        "max_position_embeddings": fields.integer("context_length", 1, MAX_CONTEXT),
        "bos_token_id": bos[0] if bos else None,
        "eos_token_ids": tuple(dict.fromkeys(eos)),
    }


def _gguf_uniform(fields: _Fields, key: str, high: int, *, default: int | None = None) -> int:
    """A size that GGUF may give once or per layer; layers that differ are another architecture."""
    value = fields.get(key)
    if not isinstance(value, list):
        return fields.integer(key, 1, high, default=default)
    fields.refuse_unless(value and all(item == value[0] for item in value), key, "differs between layers")
    return _Fields({key: value[0]}, "GGUF metadata").integer(key, 1, high)


def _gguf_gqa(fields: _Fields, checkpoint: Checkpoint, architecture: str) -> dict[str, Any]:
    experts = fields.integer("expert_count", 0, MAX_EXPERTS, default=0)
    fields.refuse_unless(experts == 0, "expert_count", "is not 0")
    heads = _gguf_uniform(fields, "attention.head_count", MAX_HEADS)
    divided = max(fields.integer("embedding_length", 1, MAX_WIDTH) // heads, 1)
    head_dim = fields.integer("attention.key_length", 1, MAX_WIDTH, default=divided)
    for key in ("attention.value_length", "rope.dimension_count"):
        same = fields.integer(key, 1, MAX_WIDTH, default=head_dim) == head_dim
        fields.refuse_unless(same, key, f"differs from the head width {head_dim}")
    return {
        "model_type": architecture,
        "num_hidden_layers": fields.integer("block_count", 1, MAX_LAYERS),
        "num_key_value_heads": _gguf_uniform(fields, "attention.head_count_kv", MAX_HEADS, default=heads),
        "head_dim": head_dim,
        "rope": _gguf_rope(fields),
        "attention_bias": "blk.0.attn_q.bias" in checkpoint.tensors,
        "attention_out_bias": "blk.0.attn_output.bias" in checkpoint.tensors,
        "qk_norm": architecture == "qwen3",
    }


def _gguf_mla(fields: _Fields, checkpoint: Checkpoint) -> dict[str, Any]:
    rope_dim = fields.integer("rope.dimension_count", 1, MAX_WIDTH)
    # Files from before the change of 2025 describe the expanded heads under the plain names.
    form = "_mla" if fields.has("attention.key_length_mla") else ""
    key_dim = fields.integer(f"attention.key_length{form}", rope_dim + 1, MAX_WIDTH)
    rank = fields.integer("attention.q_lora_rank", 0, MAX_WIDTH, default=0)
    layers, nextn = _gguf_layers(fields, checkpoint)
    moe, notes = _gguf_moe(fields, checkpoint)
    is_v3 = moe is not None and moe.scoring_func == "sigmoid"
    return {
        "model_type": "deepseek_v3" if is_v3 else "deepseek_v2",
        "num_hidden_layers": layers,
        "num_nextn_predict_layers": nextn,
        "num_key_value_heads": _gguf_uniform(fields, "attention.head_count", MAX_HEADS),
        "head_dim": rope_dim,
        "rope": _gguf_rope(fields, mla=True),
        "rope_interleaved": True,
        "q_lora_rank": rank or None,
        "kv_lora_rank": fields.integer("attention.kv_lora_rank", 1, MAX_WIDTH),
        "qk_nope_head_dim": key_dim - rope_dim,
        "qk_rope_head_dim": rope_dim,
        "v_head_dim": fields.integer(f"attention.value_length{form}", 1, MAX_WIDTH),
        "moe": moe,
        "notes": notes,
    }


def _gguf_layers(fields: _Fields, checkpoint: Checkpoint) -> tuple[int, int]:
    """Layers that run, and prediction layers: some converters append the latter to ``block_count``."""
    blocks = fields.integer("block_count", 1, MAX_LAYERS)
    nextn = fields.integer("nextn_predict_layers", 0, MAX_LAYERS, default=0)
    appended = nextn < blocks and any(
        name.startswith(f"blk.{blocks - 1}.nextn.") for name in checkpoint.tensors if nextn
    )
    return (blocks - nextn if appended else blocks), nextn


def _gguf_moe(fields: _Fields, checkpoint: Checkpoint) -> tuple[MoeConfig | None, tuple[str, ...]]:
    experts = fields.integer("expert_count", 0, MAX_EXPERTS, default=0)
    if not experts:
        return None, ()
    has_bias = any(".exp_probs_b" in name for name in checkpoint.tensors)
    gating = fields.integer("expert_gating_func", 0, 255, default=0) or (2 if has_bias else 1)
    fields.refuse_unless(gating in (1, 2), "expert_gating_func", "is not softmax (1) or sigmoid (2)")
    groups, chosen, notes = _gguf_groups(fields, gating)
    rule = "none" if groups == 1 else "top2" if gating == 2 else "max"
    moe = MoeConfig(
        n_routed_experts=experts,
        num_experts_per_tok=fields.integer("expert_used_count", 1, MAX_EXPERTS),
        n_shared_experts=fields.integer("expert_shared_count", 0, MAX_EXPERTS, default=0),
        moe_intermediate_size=fields.integer("expert_feed_forward_length", 1, MAX_WIDTH),
        first_k_dense_replace=fields.integer("leading_dense_block_count", 0, MAX_LAYERS, default=0),
        scoring_func="sigmoid" if gating == 2 else "softmax",
        group_rule=rule,
        n_group=groups,
        topk_group=chosen,
        norm_topk_prob=fields.flag("expert_weights_norm", default=gating == 2),
        # 0 is how older converters wrote "no scaling".
        routed_scaling_factor=fields.number("expert_weights_scale", -1e6, 1e6, default=1.0) or 1.0,
        has_bias=has_bias,
    )
    return moe, notes


def _gguf_groups(fields: _Fields, gating: int) -> tuple[int, int, tuple[str, ...]]:
    if not fields.has("expert_group_count"):
        old = "this file does not name expert groups (older converters left them out): routed without groups"
        return 1, 1, (old,) if gating == 2 else ()
    groups = fields.integer("expert_group_count", 1, MAX_EXPERTS)
    return groups, fields.integer("expert_group_used_count", 1, MAX_EXPERTS, default=groups), ()


def _gguf_rope(fields: _Fields, *, mla: bool = False) -> RopeConfig:
    """llama3 scaling is not here: GGUF stores it as a tensor of divisors, bound as ``rope_freqs``."""
    theta = fields.number("rope.freq_base", MIN_THETA, 1e12, default=10000.0)
    linear = fields.number("rope.scale_linear", 0, 1e6, default=0.0)
    kind = fields.text("rope.scaling.type", default="linear" if linear else "none")
    known = ("none", "linear", "yarn")
    fields.refuse_unless(kind in known, "rope.scaling.type", "is not none, linear or yarn")
    factor = fields.number("rope.scaling.factor", 0, 1e6, default=linear) or 1.0
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, type="linear", factor=factor)
    return _gguf_yarn(fields, theta, factor, mla=mla)


def _gguf_yarn(fields: _Fields, theta: float, factor: float, *, mla: bool) -> RopeConfig:
    context = fields.integer("context_length", 1, MAX_CONTEXT)
    # Stored as float32 of 0.1 * mscale_all_dim: rounding undoes the conversion.
    mscale = round(10 * fields.number("rope.scaling.yarn_log_multiplier", 0, 100, default=0.0), 5)
    multiplier = fields.number("rope.scaling.attn_factor", 0, 1e3, default=1.0)
    return RopeConfig(
        theta=theta,
        type="yarn",
        factor=factor,
        original_max_position_embeddings=fields.integer(
            "rope.scaling.original_context_length", 1, MAX_CONTEXT, default=context
        ),
        beta_fast=fields.number("rope.scaling.yarn_beta_fast", 0, 1e6, default=32.0) or 32.0,
        beta_slow=fields.number("rope.scaling.yarn_beta_slow", 0, 1e6, default=1.0) or 1.0,
        mscale=mscale,
        mscale_all_dim=mscale,
        # MLA corrects the softmax scale; the others multiply cos and sin.
        attention_factor=1.0 if mla else multiplier * yarn_mscale(factor),
    )
