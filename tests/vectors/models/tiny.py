"""Tiny models whose weights anybody can recompute: the fixtures that golden vectors and parity runs share.

A weight is a pure function of (seed, tensor name, index), so that no weights need to be stored and no random
generator's version matters. With ``k = first 8 bytes, little endian, of sha256("{seed}:{name}")``, element ``i``
of a tensor (row-major) is built from the 64-bit hash splitmix64(k + i):

    u = (hash >> 40) * 2**-23 - 1                 in [-1, 1), exact in float32
    matrix  u * sqrt(3 / columns)                 so that its outputs have the size of its inputs
    norm    1 + u / 4        bias  u / 3

computed in float32. Names and shapes are those of published Hugging Face checkpoints. Block-FP8 tensors use the
same hash: its top byte is the e4m3 code (the two NaN codes become 0), and the scales keep the size of the outputs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]
Shapes = Iterator[tuple[str, tuple[int, ...]]]

YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 16,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
COMMON = {
    "hidden_act": "silu",
    "max_position_embeddings": 640,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "torch_dtype": "float32",
}
DEEPSEEK = COMMON | {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_group": 4,
    "topk_group": 2,
    "rope_scaling": YARN,
}
V2 = DEEPSEEK | {
    "model_type": "deepseek_v2",
    "architectures": ["DeepseekV2ForCausalLM"],
    "topk_method": "group_limited_greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "n_shared_experts": 2,
    "routed_scaling_factor": 16.0,
}
V3 = DEEPSEEK | {
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "n_shared_experts": 1,
    "routed_scaling_factor": 2.5,
}
# Widths that are no multiples of anything convenient.
DENSE = COMMON | {
    "vocab_size": 251,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}


@dataclass(frozen=True)
class Tiny:
    """One tiny model: its config.json, and how its weights are stored."""

    config: Mapping[str, Any]
    seed: int = 1
    fp8_scales: str | None = None  # None: float32 weights; "f32" or "e8m0": block-FP8 with such scales
    fp8_block: int = 128


def dense_config(kind: str, **changes: Any) -> dict[str, Any]:
    """config.json of a llama, qwen2 or qwen3 model."""
    return DENSE | {"model_type": kind, "architectures": [f"{kind.capitalize()}ForCausalLM"]} | changes


TINY: dict[str, Tiny] = {
    "llama": Tiny(dense_config("llama", rope_scaling=LLAMA3, tie_word_embeddings=True)),
    "llama_bias": Tiny(
        dense_config("llama", attention_bias=True, num_key_value_heads=6, head_dim=20, rope_theta=500000.0), seed=2
    ),
    "qwen2": Tiny(dense_config("qwen2", rope_scaling={"rope_type": "linear", "factor": 3.0}), seed=4),
    "qwen3": Tiny(
        dense_config(
            "qwen3",
            head_dim=24,
            rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 160},
        )
    ),
    "v2_lite": Tiny(
        V2
        | {
            "q_lora_rank": None,
            "topk_method": "greedy",
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.0,
            "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
        }
    ),
    "v2": Tiny(V2, seed=2),
    "v3": Tiny(V3),
    "v2_odd": Tiny(
        V2
        | {
            "vocab_size": 251,
            "hidden_size": 90,
            "intermediate_size": 52,
            "moe_intermediate_size": 20,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "kv_lora_rank": 36,
            "q_lora_rank": 17,
            "qk_nope_head_dim": 10,
            "qk_rope_head_dim": 14,
            "v_head_dim": 24,
            "n_routed_experts": 9,
            "num_experts_per_tok": 2,
            "n_group": 3,
            "topk_group": 1,
            "first_k_dense_replace": 2,
            "routed_scaling_factor": 1.7,
            "rope_scaling": None,
        }
    ),
    "v3_odd": Tiny(
        V3
        | {
            "vocab_size": 251,
            "hidden_size": 72,
            "moe_intermediate_size": 40,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "kv_lora_rank": 40,
            "q_lora_rank": None,
            "qk_nope_head_dim": 20,
            "qk_rope_head_dim": 12,
            "v_head_dim": 24,
            "n_routed_experts": 7,
            "n_shared_experts": 3,
            "num_experts_per_tok": 4,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 0,
            "moe_layer_freq": 2,  # transformers ignores it, and so has experts in every layer
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.5,
            "rope_interleave": False,
            "attention_bias": True,
            "rope_scaling": YARN | {"mscale": 0.8, "mscale_all_dim": 0.5, "factor": 8},
        },
        seed=2,
    ),
    "qwen2_fp8": Tiny(
        dense_config("qwen2", hidden_size=256, intermediate_size=384, num_attention_heads=8), fp8_scales="f32"
    ),
    "v3_fp8": Tiny(
        V3 | {"hidden_size": 256, "intermediate_size": 384, "moe_intermediate_size": 128, "kv_lora_rank": 120},
        fp8_scales="e8m0",
    ),
    # Edge blocks are partial in both directions, as kv_a_proj of the published models (576 rows) is in one.
    "v3_fp8_edge": Tiny(
        V3 | {"hidden_size": 200, "intermediate_size": 330, "moe_intermediate_size": 136, "kv_lora_rank": 130},
        fp8_scales="f32",
    ),
}


def tensor_shapes(config: Mapping[str, Any]) -> Shapes:
    """Names and shapes of a Hugging Face checkpoint with this config.json."""
    vocab, hidden = config["vocab_size"], config["hidden_size"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield from _mla_shapes(config, prefix) if "kv_lora_rank" in config else _gqa_shapes(config, prefix)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        if layer < config.get("first_k_dense_replace", config["num_hidden_layers"]):
            yield from _mlp_shapes(prefix + "mlp.", hidden, config["intermediate_size"])
        else:
            yield from _moe_shapes(config, prefix + "mlp.")
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, hidden)


def _gqa_shapes(config: Mapping[str, Any], layer: str) -> Shapes:
    prefix, hidden, heads = layer + "self_attn.", config["hidden_size"], config["num_attention_heads"]
    dim = config.get("head_dim", hidden // heads)
    q, kv = heads * dim, config["num_key_value_heads"] * dim
    qwen2 = config["model_type"] == "qwen2"
    for name, rows, cols in (("q", q, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, q)):
        yield f"{prefix}{name}_proj.weight", (rows, cols)
        if config["attention_bias"] or (qwen2 and name != "o"):
            yield f"{prefix}{name}_proj.bias", (rows,)
    if config["model_type"] == "qwen3":
        yield prefix + "q_norm.weight", (dim,)
        yield prefix + "k_norm.weight", (dim,)


def _mla_shapes(config: Mapping[str, Any], layer: str) -> Shapes:
    prefix, hidden, heads = layer + "self_attn.", config["hidden_size"], config["num_attention_heads"]
    rank, latent = config["q_lora_rank"], config["kv_lora_rank"]
    q = heads * (config["qk_nope_head_dim"] + config["qk_rope_head_dim"])
    if rank is None:
        yield prefix + "q_proj.weight", (q, hidden)
    else:
        yield prefix + "q_a_proj.weight", (rank, hidden)
        yield prefix + "q_a_layernorm.weight", (rank,)
        yield prefix + "q_b_proj.weight", (q, rank)
    yield prefix + "kv_a_proj_with_mqa.weight", (latent + config["qk_rope_head_dim"], hidden)
    yield prefix + "kv_a_layernorm.weight", (latent,)
    yield prefix + "kv_b_proj.weight", (heads * (config["qk_nope_head_dim"] + config["v_head_dim"]), latent)
    yield prefix + "o_proj.weight", (hidden, heads * config["v_head_dim"])
    if config["attention_bias"]:
        yield prefix + "kv_a_proj_with_mqa.bias", (latent + config["qk_rope_head_dim"],)
        yield prefix + "o_proj.bias", (hidden,)
        if rank is not None:
            yield prefix + "q_a_proj.bias", (rank,)


def _mlp_shapes(prefix: str, hidden: int, inner: int) -> Shapes:
    yield prefix + "gate_proj.weight", (inner, hidden)
    yield prefix + "up_proj.weight", (inner, hidden)
    yield prefix + "down_proj.weight", (hidden, inner)


def _moe_shapes(config: Mapping[str, Any], prefix: str) -> Shapes:
    hidden, inner, experts = config["hidden_size"], config["moe_intermediate_size"], config["n_routed_experts"]
    yield prefix + "gate.weight", (experts, hidden)
    if config["model_type"] == "deepseek_v3":
        yield prefix + "gate.e_score_correction_bias", (experts,)
    for expert in range(experts):
        yield from _mlp_shapes(f"{prefix}experts.{expert}.", hidden, inner)
    yield from _mlp_shapes(prefix + "shared_experts.", hidden, inner * config["n_shared_experts"])


def tiny_tensors(tiny: Tiny) -> Tensors:
    """Every tensor of the checkpoint: float32; of block-FP8, uint8 codes and their ``_scale_inv``."""
    tensors: Tensors = {}
    for name, shape in tensor_shapes(tiny.config):
        if tiny.fp8_scales is not None and _is_fp8(name):
            tensors[name] = fp8_codes(tiny.seed, name, shape)
            tensors[name + "_scale_inv"] = fp8_scales(tiny, name, shape)
        else:
            tensors[name] = values(tiny.seed, name, shape)
    return tensors


def _is_fp8(name: str) -> bool:
    """Published FP8 checkpoints keep the embedding, the head, the routers and the norms wider."""
    return name.endswith(("_proj.weight", "_mqa.weight"))


def values(seed: int, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A float32 tensor: matrix, norm or bias by its name."""
    u = _uniform(_hash(seed, name, math.prod(shape))).reshape(shape)
    if len(shape) > 1:
        return u * np.float32(math.sqrt(3 / shape[-1]))
    if name.endswith("norm.weight"):
        return np.float32(1) + u / np.float32(4)
    return u / np.float32(3)


def fp8_codes(seed: int, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Random e4m3 codes, none of them NaN."""
    codes = (_hash(seed, name, math.prod(shape)) >> np.uint64(56)).astype(np.uint8).reshape(shape)
    return np.where(codes & 0x7F == 0x7F, 0, codes).astype(np.uint8)


def fp8_scales(tiny: Tiny, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """One multiplier per block: float32, or e8m0 codes (2**(code - 127)) as uint8."""
    grid = tuple(-(-size // tiny.fp8_block) for size in shape)
    spread = _uniform(_hash(tiny.seed, name + "_scale_inv", math.prod(grid))).reshape(grid) / np.float32(2)
    rms_of_random_codes = 107.0
    scales = (np.float32(1) + spread) * np.float32(1 / (rms_of_random_codes * math.sqrt(shape[-1])))
    if tiny.fp8_scales == "f32":
        return scales
    return (np.round(np.log2(scales.astype(np.float64))) + 127).astype(np.uint8)


def e4m3_to_float(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The values of e4m3 codes (without NaN)."""
    exponent = (codes >> 3 & 15).astype(np.int32)
    mantissa = (codes & 7).astype(np.float32) / np.float32(8)
    magnitude = np.where(exponent == 0, np.ldexp(mantissa, -6), np.ldexp(np.float32(1) + mantissa, exponent - 7))
    return np.where(codes & 0x80, -magnitude, magnitude).astype(np.float32)


def dequantized(tiny: Tiny) -> Tensors:
    """The same tensors with block-FP8 multiplied out in float32."""
    tensors = tiny_tensors(tiny)
    plain: Tensors = {}
    for name, value in tensors.items():
        if name.endswith("_scale_inv"):
            continue
        scales = tensors.get(name + "_scale_inv")
        plain[name] = value if scales is None else _multiplied_out(value, scales, tiny.fp8_block)
    return plain


def _multiplied_out(codes: NDArray[np.uint8], scales: NDArray[Any], block: int) -> NDArray[np.float32]:
    if scales.dtype == np.uint8:
        scales = np.ldexp(np.float32(1), scales.astype(np.int32) - 127)
    grown = scales.repeat(block, axis=0)[: codes.shape[0]].repeat(block, axis=1)[:, : codes.shape[1]]
    return e4m3_to_float(codes) * grown.astype(np.float32)


def prompt_tokens(vocab_size: int, count: int, seed: int = 7) -> list[int]:
    """A prompt of random tokens, none of them BOS or EOS."""
    return [2 + int(h % np.uint64(vocab_size - 2)) for h in _hash(seed, "prompt", count)]


def _hash(seed: int, name: str, count: int) -> NDArray[np.uint64]:
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little")
    z = np.arange(count, dtype=np.uint64) + np.uint64((key + 0x9E3779B97F4A7C15) % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _uniform(bits: NDArray[np.uint64]) -> NDArray[np.float32]:
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - np.float32(1)
