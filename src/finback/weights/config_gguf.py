"""ModelConfig from GGUF metadata: architectures llama, qwen2, qwen3 and deepseek2 (both ages of its MLA keys)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from finback.errors import ShapeMismatch, UnsupportedModel
from finback.weights.config import ModelConfig, MoeConfig, RopeConfig, dtype_of_tensors, yarn_mscale
from finback.weights.config_fields import (
    GGUF_ARCHITECTURES,
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
    general = Fields(checkpoint.metadata, "GGUF metadata")
    architecture = general.text("general.architecture", default="")
    if architecture not in GGUF_ARCHITECTURES:
        raise UnsupportedModel(f"GGUF architecture {shown(architecture)} is not supported", hint=RUNS)
    fields = Fields(checkpoint.metadata, "GGUF metadata", f"{architecture}.")
    vocab_size = _vocab_size(checkpoint, fields)
    is_mla = architecture == "deepseek2"
    own = _mla(fields, checkpoint) if is_mla else _gqa(fields, checkpoint, architecture)
    return ModelConfig(
        vocab_size=vocab_size,
        **_common(fields, general, vocab_size),
        **own,
        tie_word_embeddings="output.weight" not in checkpoint.tensors,
        dtype=dtype_of_tensors(checkpoint),
    )


def _vocab_size(checkpoint: Checkpoint, fields: Fields) -> int:
    """The embedding's rows: the metadata key is optional, and in some published files wrong."""
    info = checkpoint.tensors.get("token_embd.weight")
    if info is None:
        return fields.integer("vocab_size", 1, MAX_VOCAB)
    if len(info.shape) != 2 or not 1 <= info.shape[0] <= MAX_VOCAB:
        raise ShapeMismatch(f"token_embd.weight has shape {list(info.shape)}, expected [vocabulary, hidden]")
    return info.shape[0]


def _common(fields: Fields, general: Fields, vocab_size: int) -> dict[str, Any]:
    bos = general.token_ids("tokenizer.ggml.bos_token_id", vocab_size)
    ends = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    eos = tuple(token for key in ends for token in general.token_ids(key, vocab_size))
    return {
        "hidden_size": fields.integer("embedding_length", 1, MAX_WIDTH),
        "intermediate_size": _uniform(fields, "feed_forward_length", MAX_WIDTH),
        "num_attention_heads": _uniform(fields, "attention.head_count", MAX_HEADS),
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon", 0, 1),
        "max_position_embeddings": fields.integer("context_length", 1, MAX_CONTEXT),
        "bos_token_id": bos[0] if bos else None,
        "eos_token_ids": tuple(dict.fromkeys(eos)),
    }


def _uniform(fields: Fields, key: str, high: int, *, default: int | None = None) -> int:
    """A size that GGUF may give once or per layer; layers that differ are another architecture."""
    value = fields.get(key)
    if not isinstance(value, list):
        return fields.integer(key, 1, high, default=default)
    same = bool(value) and all(item == value[0] for item in value)
    fields.refuse_unless(same, key, "differs between layers")
    return Fields({key: value[0]}, "GGUF metadata").integer(key, 1, high)


def _gqa(fields: Fields, checkpoint: Checkpoint, architecture: str) -> dict[str, Any]:
    experts = fields.integer("expert_count", 0, MAX_EXPERTS, default=0)
    fields.refuse_unless(experts == 0, "expert_count", "is not 0")
    heads = _uniform(fields, "attention.head_count", MAX_HEADS)
    divided = max(fields.integer("embedding_length", 1, MAX_WIDTH) // heads, 1)
    head_dim = fields.integer("attention.key_length", 1, MAX_WIDTH, default=divided)
    for key in ("attention.value_length", "rope.dimension_count"):
        same = fields.integer(key, 1, MAX_WIDTH, default=head_dim) == head_dim
        fields.refuse_unless(same, key, f"differs from the head width {head_dim}")
    return {
        "model_type": architecture,
        "num_hidden_layers": fields.integer("block_count", 1, MAX_LAYERS),
        "num_key_value_heads": _uniform(fields, "attention.head_count_kv", MAX_HEADS, default=heads),
        "head_dim": head_dim,
        "rope": _rope(fields),
        "attention_bias": architecture == "qwen2" or _has_any(checkpoint, ".attn_q.bias"),
        "attention_out_bias": _has_any(checkpoint, ".attn_output.bias"),
        "qk_norm": architecture == "qwen3",
    }


def _has_any(checkpoint: Checkpoint, ending: str) -> bool:
    """Whether some layer has this tensor; then binding asks all of them for it."""
    return any(name.endswith(ending) for name in checkpoint.tensors)


def _mla(fields: Fields, checkpoint: Checkpoint) -> dict[str, Any]:
    rope_dim = fields.integer("rope.dimension_count", 1, MAX_WIDTH)
    # Files from before the change of 2025 describe the expanded heads under the plain names.
    form = "_mla" if fields.has("attention.key_length_mla") else ""
    key_dim = fields.integer(f"attention.key_length{form}", rope_dim + 1, MAX_WIDTH)
    rank = fields.integer("attention.q_lora_rank", 0, MAX_WIDTH, default=0)
    layers, nextn = _layers(fields, checkpoint)
    moe, notes = _moe(fields, checkpoint)
    is_v3 = moe is not None and moe.scoring_func == "sigmoid"
    return {
        "model_type": "deepseek_v3" if is_v3 else "deepseek_v2",
        "num_hidden_layers": layers,
        "num_nextn_predict_layers": nextn,
        "num_key_value_heads": _uniform(fields, "attention.head_count", MAX_HEADS),
        "head_dim": rope_dim,
        "rope": _rope(fields, mla=True),
        "rope_interleaved": True,
        "q_lora_rank": rank or None,
        "kv_lora_rank": fields.integer("attention.kv_lora_rank", 1, MAX_WIDTH),
        "qk_nope_head_dim": key_dim - rope_dim,
        "qk_rope_head_dim": rope_dim,
        "v_head_dim": fields.integer(f"attention.value_length{form}", 1, MAX_WIDTH),
        "moe": moe,
        "notes": notes,
    }


def _layers(fields: Fields, checkpoint: Checkpoint) -> tuple[int, int]:
    """Layers that run, and prediction layers: some converters append the latter to ``block_count``."""
    blocks = fields.integer("block_count", 1, MAX_LAYERS)
    nextn = fields.integer("nextn_predict_layers", 0, MAX_LAYERS, default=0)
    appended = nextn < blocks and any(
        name.startswith(f"blk.{blocks - 1}.nextn.") for name in checkpoint.tensors if nextn
    )
    return (blocks - nextn if appended else blocks), nextn


def _moe(fields: Fields, checkpoint: Checkpoint) -> tuple[MoeConfig | None, tuple[str, ...]]:
    experts = fields.integer("expert_count", 0, MAX_EXPERTS, default=0)
    if not experts:
        return None, ()
    has_bias = _has_any(checkpoint, ".exp_probs_b.bias") or _has_any(checkpoint, ".exp_probs_b")
    gating = fields.integer("expert_gating_func", 0, 255, default=0) or (2 if has_bias else 1)
    fields.refuse_unless(gating in (1, 2), "expert_gating_func", "is not softmax (1) or sigmoid (2)")
    groups, chosen, notes = _groups(fields, gating)
    rule: Literal["none", "max", "top2"] = "none" if groups == 1 else "top2" if gating == 2 else "max"
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
        has_bias=has_bias or gating == 2,
    )
    return moe, notes


def _groups(fields: Fields, gating: int) -> tuple[int, int, tuple[str, ...]]:
    if not fields.has("expert_group_count"):
        old = "this file does not name expert groups (older converters left them out): routed without groups"
        return 1, 1, (old,) if gating == 2 else ()
    groups = fields.integer("expert_group_count", 1, MAX_EXPERTS)
    return groups, fields.integer("expert_group_used_count", 1, MAX_EXPERTS, default=groups), ()


def _rope(fields: Fields, *, mla: bool = False) -> RopeConfig:
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
    return _yarn(fields, theta, factor, mla=mla)


def _yarn(fields: Fields, theta: float, factor: float, *, mla: bool) -> RopeConfig:
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
