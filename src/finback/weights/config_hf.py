"""ModelConfig from Hugging Face's config.json, in the spellings of transformers 4 and 5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finback.errors import UnsupportedModel
from finback.weights.config import (
    GQA_TYPES,
    MLA_TYPES,
    ModelConfig,
    MoeConfig,
    RopeConfig,
    dtype_of_tensors,
    yarn_mscale,
)
from finback.weights.config_fields import (
    MAX_CONTEXT,
    MAX_EXPERTS,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCAB,
    MAX_WIDTH,
    MIN_THETA,
    RUNS,
    Fields,
    shown,
)

if TYPE_CHECKING:
    from finback.weights.checkpoint import Checkpoint


def read(checkpoint: Checkpoint) -> ModelConfig:
    fields = Fields(checkpoint.hf_config, "config.json")
    model_type = fields.text("model_type", default="")
    if model_type not in GQA_TYPES + MLA_TYPES:
        raise UnsupportedModel(f"config.json: model_type {shown(model_type)} is not supported", hint=RUNS)
    activation = fields.text("hidden_act", default="silu")
    fields.refuse_unless(activation == "silu", "hidden_act", "is not supported")
    fields.refuse_unless(not fields.flag("mlp_bias", default=False), "mlp_bias", "is not supported")
    own = _mla(fields, model_type, checkpoint) if model_type in MLA_TYPES else _gqa(fields, model_type)
    tied = fields.flag("tie_word_embeddings", default=False)
    return ModelConfig(
        model_type=model_type,
        **_common(fields),
        **own,
        tie_word_embeddings=tied and "lm_head.weight" not in checkpoint.tensors,
        dtype=_dtype(fields, checkpoint),
        fp8_block=_fp8_block(fields),
    )


def _common(fields: Fields) -> dict[str, Any]:
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
        "rope": _rope(fields),
        "bos_token_id": bos[0] if bos else None,
        "eos_token_ids": fields.token_ids("eos_token_id", vocab_size),
    }


def _gqa(fields: Fields, model_type: str) -> dict[str, Any]:
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


def _refuse_sliding_window(fields: Fields) -> None:
    fields.refuse_unless(not fields.flag("use_sliding_window", default=False), "use_sliding_window", "is not supported")
    kinds = fields.get("layer_types")
    if kinds is not None and not isinstance(kinds, list):
        raise fields.bad("layer_types", "a list", kinds)
    full = all(kind == "full_attention" for kind in kinds or ())
    fields.refuse_unless(full, "layer_types", "is not supported")


def _mla(fields: Fields, model_type: str, checkpoint: Checkpoint) -> dict[str, Any]:
    bias = fields.flag("attention_bias", default=False)
    rope_dim = fields.integer("qk_rope_head_dim", 1, MAX_WIDTH)
    has_q_lora = fields.has("q_lora_rank")
    moe, notes = _moe(fields, model_type, checkpoint)
    return {
        "num_key_value_heads": fields.integer("num_attention_heads", 1, MAX_HEADS),
        "head_dim": rope_dim,
        "attention_bias": bias,
        "attention_out_bias": bias,
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


def _moe(fields: Fields, model_type: str, checkpoint: Checkpoint) -> tuple[MoeConfig | None, tuple[str, ...]]:
    if not fields.has("n_routed_experts"):
        return None, ()
    routing, notes = (_routing_v2 if model_type == "deepseek_v2" else _routing_v3)(fields)
    moe = MoeConfig(
        n_routed_experts=fields.integer("n_routed_experts", 1, MAX_EXPERTS),
        num_experts_per_tok=fields.integer("num_experts_per_tok", 1, MAX_EXPERTS),
        n_shared_experts=fields.integer("n_shared_experts", 0, MAX_EXPERTS, default=0),
        moe_intermediate_size=fields.integer("moe_intermediate_size", 1, MAX_WIDTH),
        first_k_dense_replace=fields.integer("first_k_dense_replace", 0, MAX_LAYERS, default=0),
        moe_layer_freq=_moe_layer_freq(fields, checkpoint),
        routed_scaling_factor=fields.number("routed_scaling_factor", -1e6, 1e6, default=1.0),
        **routing,
    )
    return moe, notes


def _moe_layer_freq(fields: Fields, checkpoint: Checkpoint) -> int:
    """Every how many layers have experts. One reference implementation ignores the key: the files decide."""
    every = fields.integer("moe_layer_freq", 1, MAX_LAYERS, default=1)
    first = fields.integer("first_k_dense_replace", 0, MAX_LAYERS, default=0)
    layers = range(first, fields.integer("num_hidden_layers", 1, MAX_LAYERS))
    between = (f"model.layers.{layer}.mlp.gate.weight" for layer in layers if layer % every)
    return 1 if any(router in checkpoint.tensors for router in between) else every


def _routing_v2(fields: Fields) -> tuple[dict[str, Any], tuple[str, ...]]:
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


def _routing_v3(fields: Fields) -> tuple[dict[str, Any], tuple[str, ...]]:
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


def _rope(fields: Fields) -> RopeConfig:
    """Both spellings: ``rope_theta`` + ``rope_scaling``, and ``rope_parameters`` that holds everything."""
    theta = fields.number("rope_theta", MIN_THETA, 1e12, default=10000.0)
    partial = fields.number("partial_rotary_factor", 0, 1, default=1.0)
    fields.refuse_unless(partial == 1.0, "partial_rotary_factor", "is not supported")
    scaling = fields.section("rope_scaling") or fields.section("rope_parameters")
    if scaling is None:
        return RopeConfig(theta=theta)
    key = "rope_scaling" if fields.has("rope_scaling") else "rope_parameters"
    fields.refuse_unless(not scaling.holds_sections(), key, "differs between kinds of layers")
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


def _rope_plain(scaling: Fields, theta: float, original: int, context: int) -> RopeConfig:
    return RopeConfig(theta=theta)


def _rope_linear(scaling: Fields, theta: float, original: int, context: int) -> RopeConfig:
    return RopeConfig(theta=theta, type="linear", factor=scaling.number("factor", 1e-3, 1e6))


def _rope_llama3(scaling: Fields, theta: float, original: int, context: int) -> RopeConfig:
    return RopeConfig(
        theta=theta,
        type="llama3",
        factor=scaling.number("factor", 1e-3, 1e6),
        original_max_position_embeddings=original,
        low_freq_factor=scaling.number("low_freq_factor", 1e-3, 1e6),
        high_freq_factor=scaling.number("high_freq_factor", 1e-3, 1e6),
    )


def _rope_yarn(scaling: Fields, theta: float, original: int, context: int) -> RopeConfig:
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


def _dtype(fields: Fields, checkpoint: Checkpoint) -> str:
    key = "dtype" if fields.has("dtype") else "torch_dtype"
    name = fields.text(key, default="").removeprefix("torch.")
    if not name:
        return dtype_of_tensors(checkpoint)
    if name not in ("float32", "bfloat16", "float16"):
        raise UnsupportedModel(f"config.json: {key} {name[:60]!r} is not float32, bfloat16 or float16")
    return name


def _fp8_block(fields: Fields) -> tuple[int, int] | None:
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
