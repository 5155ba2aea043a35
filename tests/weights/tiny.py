"""Tiny random models of every family, as files: what the tests of other rooms load.

    write_tiny_folder(folder, "deepseek_v3")                        a Hugging Face folder, F32
    write_tiny_folder(folder, "llama", dtype="BF16", shards=3)
    write_tiny_folder(folder, "deepseek_v3", dtype="F8")            block-FP8 with 128x128 scales
    write_tiny_gguf(path, "qwen2", format="Q8_0")                   random blocks of a format
    write_tiny_gguf(path, "llama")                                  F32: the weights of write_tiny_folder

FAMILIES are llama, qwen2, qwen3, deepseek_v2_lite, deepseek_v2 and deepseek_v3. ``overrides`` change the configuration.
The conversion to GGUF (names, permuted q and k of llama, stacked experts, both MLA forms) is written from the format's
description, independently of the code that binds such files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.weights.writers import (
    GGUF_TYPES,
    Raw,
    Typed,
    bf16,
    random_blocks,
    write_gguf,
    write_safetensors_folder,
)

Floats = npt.NDArray[np.float32]

FAMILIES = ("llama", "qwen2", "qwen3", "deepseek_v2_lite", "deepseek_v2", "deepseek_v3")

_COMMON: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "max_position_embeddings": 512, "rope_theta": 10000.0,
    "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip
_MLA: dict[str, Any] = {
    "num_key_value_heads": 4, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "q_lora_rank": 24, "moe_intermediate_size": 32, "n_routed_experts": 8, "n_shared_experts": 2,
    "num_experts_per_tok": 3, "first_k_dense_replace": 1, "moe_layer_freq": 1, "attention_bias": False,
    "rope_scaling": {
        "type": "yarn", "factor": 40, "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1,
        "mscale": 1.0, "mscale_all_dim": 1.0,
    },
}  # fmt: skip
_V2: dict[str, Any] = {
    **_MLA, "model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "scoring_func": "softmax",
    "norm_topk_prob": False,
}  # fmt: skip
_OWN: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "attention_bias": False,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 32},
    "deepseek_v2_lite": {
        **_V2, "q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1,
        "routed_scaling_factor": 1.0,
        "rope_scaling": {**_MLA["rope_scaling"], "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "deepseek_v2": {
        **_V2, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 16.0,
    },
    "deepseek_v3": {
        **_MLA, "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "n_shared_experts": 1,
        "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True, "n_group": 4, "topk_group": 2,
        "routed_scaling_factor": 2.5,
    },
}  # fmt: skip


# --- the vocabulary: 256 bytes, some merges, control tokens

MERGES = ("Ġ t", "h e", "Ġt he", "i n", "Ġ a", "r e", "o n", "Ġ s", "l l", "e r")
CONTROL = ("<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>")
USER_DEFINED = ("<think>", "</think>")


def byte_characters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def tokens() -> list[str]:
    """All tokens; an id is its place in the list."""
    merged = ["".join(merge.split(" ")) for merge in MERGES]
    return [*CONTROL, *byte_characters(), *merged, *USER_DEFINED]


VOCAB_SIZE = len(CONTROL) + 256 + len(MERGES) + len(USER_DEFINED)
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'].capitalize() + '|>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>{% endif %}"
)


def tokenizer_json() -> dict[str, Any]:
    """The tokenizer as Hugging Face publishes it."""
    vocabulary = {token: index for index, token in enumerate(tokens())}
    added = [
        {
            "id": tokens().index(token), "content": token, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": token in CONTROL,
        }
        for token in CONTROL + USER_DEFINED
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary,
            "merges": list(MERGES),
        },
    }  # fmt: skip


def side_files() -> dict[str, Any]:
    """tokenizer.json and its companions."""
    return {
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": {
            "bos_token": CONTROL[0], "eos_token": CONTROL[1], "add_bos_token": True, "chat_template": TEMPLATE,
        },
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": 1, "temperature": 0.6, "top_p": 0.95},
    }  # fmt: skip


def tokenizer_metadata() -> dict[str, Any]:
    """The same tokenizer as GGUF metadata."""
    kinds = [3 if token in CONTROL else 4 if token in USER_DEFINED else 1 for token in tokens()]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens(),
        "tokenizer.ggml.token_type": Typed("array:i32", kinds),
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": TEMPLATE,
    }


# --- configurations and weights, with the names of Hugging Face


def tiny_config(family: str, **overrides: Any) -> dict[str, Any]:
    """config.json of a tiny model."""
    ids = {"vocab_size": VOCAB_SIZE, "bos_token_id": 0, "eos_token_id": 1}
    return {**_COMMON, **ids, **_OWN[family], **overrides}


def tiny_tensors(config: Mapping[str, Any], *, seed: int = 0) -> dict[str, Floats]:
    """Random float32 weights; logits have a spread of about one."""
    rng = np.random.default_rng(seed)
    shapes = _shapes(config)
    return {name: _values(name, shape, rng) for name, shape in shapes.items()}


def _values(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    if "norm" in name:
        return rng.normal(1, 0.1, shape).astype(np.float32)
    spread = 0.3 if len(shape) == 1 else 1 / np.sqrt(shape[-1])
    return rng.normal(0, spread, shape).astype(np.float32)


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    vocabulary, hidden = config["vocab_size"], config["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        attention = _mla_shapes(config) if "kv_lora_rank" in config else _gqa_shapes(config)
        parts = {**{f"self_attn.{name}": shape for name, shape in attention.items()}, **_mlp_shapes(config, layer)}
        parts |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
        shapes |= {prefix + name: shape for name, shape in parts.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes


def _gqa_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, heads, kv_heads = (config[f"{k}"] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    width = config.get("head_dim", hidden // heads)
    shapes: dict[str, tuple[int, ...]] = {
        "q_proj.weight": (heads * width, hidden),
        "k_proj.weight": (kv_heads * width, hidden),
        "v_proj.weight": (kv_heads * width, hidden),
        "o_proj.weight": (hidden, heads * width),
    }
    if config["model_type"] == "qwen2":
        shapes |= {f"{part}_proj.bias": shapes[f"{part}_proj.weight"][:1] for part in "qkv"}
    if config["model_type"] == "qwen3":
        shapes |= {"q_norm.weight": (width,), "k_norm.weight": (width,)}
    return shapes


def _mla_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, heads, latent = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rotary, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    rank = config["q_lora_rank"]
    query: dict[str, tuple[int, ...]] = {"q_proj.weight": (heads * (nope + rotary), hidden)}
    if rank is not None:
        query = {
            "q_a_proj.weight": (rank, hidden),
            "q_a_layernorm.weight": (rank,),
            "q_b_proj.weight": (heads * (nope + rotary), rank),
        }
    return {
        **query,
        "kv_a_proj_with_mqa.weight": (latent + rotary, hidden),
        "kv_a_layernorm.weight": (latent,),
        "kv_b_proj.weight": (heads * (nope + value), latent),
        "o_proj.weight": (hidden, heads * value),
    }


def _mlp_shapes(config: Mapping[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    hidden = config["hidden_size"]
    if "n_routed_experts" not in config or layer < config["first_k_dense_replace"]:
        return _swiglu("mlp.", hidden, config["intermediate_size"])
    experts, width = config["n_routed_experts"], config["moe_intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {"mlp.gate.weight": (experts, hidden)}
    if config["model_type"] == "deepseek_v3":
        shapes["mlp.gate.e_score_correction_bias"] = (experts,)
    for expert in range(experts):
        shapes |= _swiglu(f"mlp.experts.{expert}.", hidden, width)
    return shapes | _swiglu("mlp.shared_experts.", hidden, width * config["n_shared_experts"])


def _swiglu(prefix: str, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}gate_proj.weight": (width, hidden),
        f"{prefix}up_proj.weight": (width, hidden),
        f"{prefix}down_proj.weight": (hidden, width),
    }


# --- Hugging Face folders


def write_tiny_folder(
    folder: Path, family: str, *, seed: int = 0, dtype: str = "F32", shards: int = 1, **overrides: Any
) -> Path:
    """A tiny model as a folder of safetensors. ``dtype``: F32, F16, BF16, or F8 (block-FP8, 128x128 F32 scales)."""
    config = tiny_config(family, **overrides)
    weights = tiny_tensors(config, seed=seed)
    names = {"F32": "float32", "F16": "float16"}
    config["torch_dtype"] = names.get(dtype, "bfloat16")
    if dtype == "F8":
        config["quantization_config"] = {
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
        }  # fmt: skip
    tensors: dict[str, Any] = {}
    for name, values in weights.items():
        tensors |= _stored(name, values, dtype)
    return write_safetensors_folder(folder, config, tensors, shards=shards, side_files=side_files())


def _stored(name: str, values: Floats, dtype: str) -> dict[str, Any]:
    """A tensor in the type that such a checkpoint has it in."""
    if dtype == "F32" or name.endswith("e_score_correction_bias"):
        return {name: values}
    if dtype == "F16":
        return {name: values.astype(np.float16)}
    if dtype == "F8" and name.endswith(("_proj.weight", "_with_mqa.weight")):
        raw, scales = block_fp8(values)
        return {name: raw, name.replace(".weight", ".weight_scale_inv"): scales}
    return {name: bf16(values)}


def e4m3_values() -> Floats:
    """The 127 finite values from 0 up, by code."""
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    small = mantissa / 8 * 2.0**-6
    return np.where(exponent == 0, small, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)).astype(np.float32)


def block_fp8(values: Floats, block: int = 128) -> tuple[Raw, Floats]:
    """Codes and the float32 multiplier of each block (partial at the edges)."""
    rows, cols = values.shape
    grid = (-(-rows // block), -(-cols // block))
    scales = np.empty(grid, np.float32)
    codes = np.empty(values.shape, np.uint8)
    table = e4m3_values()
    for i, j in np.ndindex(*grid):
        area = np.s_[i * block : (i + 1) * block, j * block : (j + 1) * block]
        scales[i, j] = np.abs(values[area]).max() / 448
        magnitude = np.abs(values[area]) / scales[i, j]
        nearest = np.abs(magnitude[..., None] - table).argmin(axis=-1).astype(np.uint8)
        codes[area] = nearest | (values[area] < 0).astype(np.uint8) << 7
    return Raw("F8_E4M3", (rows, cols), codes.tobytes()), scales


# --- GGUF


def write_tiny_gguf(
    path: Path, family: str, *, seed: int = 0, format: str = "F32", old_mla: bool = False, **overrides: Any
) -> Path:
    """A tiny model as GGUF. F32 has the weights of write_tiny_folder; other formats are random blocks.

    Formats of 256 values per block need widths that are multiples of 256 (``hidden_size=256, ...``); a matrix whose
    rows do not fit the format becomes F16, as converters do with the next best. ``old_mla`` writes attn_kv_b in one
    piece.
    """
    metadata, tensors = tiny_gguf(family, seed=seed, format=format, old_mla=old_mla, **overrides)
    return write_gguf(path, metadata, tensors)


def tiny_gguf(
    family: str, *, seed: int = 0, format: str = "F32", old_mla: bool = False, **overrides: Any
) -> tuple[dict[str, Any], dict[str, Floats | Raw]]:
    """The metadata and tensors of write_tiny_gguf."""
    config = tiny_config(family, **overrides)
    converted = gguf_tensors(config, tiny_tensors(config, seed=seed), old_mla=old_mla)
    rng = np.random.default_rng(seed)
    tensors = {name: _in_format(name, values, format, rng) for name, values in converted.items()}
    return {**gguf_metadata(config, old_mla=old_mla), **tokenizer_metadata()}, tensors


def _in_format(name: str, values: Floats, format: str, rng: np.random.Generator) -> Floats | Raw:
    keeps = values.ndim == 1 or name.endswith("ffn_gate_inp.weight") or format == "F32"
    if keeps:
        return values
    fits = values.shape[-1] % GGUF_TYPES[format][1] == 0
    spread = 1.7 / np.sqrt(values.shape[-1])
    return random_blocks(format if fits else "F16", values.shape, rng, scale=spread)


def gguf_metadata(config: Mapping[str, Any], *, old_mla: bool = False) -> dict[str, Any]:
    """The key-values of a converter, less the tokenizer's."""
    arch = "deepseek2" if "kv_lora_rank" in config else config["model_type"]
    keys: dict[str, Any] = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(config["rope_theta"]),
        "vocab_size": config["vocab_size"],
    }
    keys |= _mla_metadata(config, old_mla=old_mla) if arch == "deepseek2" else _gqa_metadata(config)
    general = {"general.architecture": arch, "general.name": "tiny", "general.file_type": 0}
    return {**general, **{f"{arch}.{key}": value for key, value in keys.items()}}


def _gqa_metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    width = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    return {"rope.dimension_count": width, "attention.key_length": width, "attention.value_length": width}


def _mla_metadata(config: Mapping[str, Any], *, old_mla: bool) -> dict[str, Any]:
    latent, rotary = config["kv_lora_rank"], config["qk_rope_head_dim"]
    key, value = config["qk_nope_head_dim"] + rotary, config["v_head_dim"]
    keys: dict[str, Any] = {"attention.key_length": key, "attention.value_length": value}
    if not old_mla:
        keys = {
            "attention.head_count_kv": 1,
            "attention.key_length": latent + rotary,
            "attention.value_length": latent,
            "attention.key_length_mla": key,
            "attention.value_length_mla": value,
        }
    if config["q_lora_rank"] is not None:
        keys["attention.q_lora_rank"] = config["q_lora_rank"]
    yarn = config["rope_scaling"]
    return keys | {
        "attention.kv_lora_rank": latent,
        "rope.dimension_count": rotary,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(yarn["factor"]),
        "rope.scaling.original_context_length": yarn["original_max_position_embeddings"],
        "rope.scaling.yarn_log_multiplier": 0.1 * yarn["mscale_all_dim"],
        "expert_count": config["n_routed_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_weights_scale": float(config["routed_scaling_factor"]),
        "expert_weights_norm": config["norm_topk_prob"],
        "expert_gating_func": 2 if config["scoring_func"] == "sigmoid" else 1,
        "expert_group_count": config["n_group"],
        "expert_group_used_count": config["topk_group"],
        "leading_dense_block_count": config["first_k_dense_replace"],
    }


_GLOBAL_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a", "self_attn.q_a_layernorm": "attn_q_a_norm", "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp", "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}  # fmt: skip


def gguf_tensors(
    config: Mapping[str, Any], tensors: Mapping[str, Floats], *, old_mla: bool = False
) -> dict[str, Floats]:
    """Hugging Face tensors under GGUF's names and in GGUF's arrangement."""
    found: dict[str, Floats] = {}
    if config["model_type"] == "llama" and config.get("rope_scaling"):
        found["rope_freqs.weight"] = _llama3_divisors(config)
    for name, values in tensors.items():
        if name in _GLOBAL_NAMES:
            found[_GLOBAL_NAMES[name]] = values
            continue
        _, _, layer, rest = name.split(".", 3)
        if ".experts." not in rest:
            found |= _layer_tensor(config, f"blk.{layer}.", rest, values, old_mla=old_mla)
    return found | _stacked_experts(config, tensors)


def _layer_tensor(
    config: Mapping[str, Any], prefix: str, rest: str, values: Floats, *, old_mla: bool
) -> dict[str, Floats]:
    if rest == "mlp.gate.e_score_correction_bias":
        return {f"{prefix}exp_probs_b.bias": values}
    if rest == "self_attn.kv_b_proj.weight" and not old_mla:
        return _split_kv_b(config, prefix, values)
    module, kind = rest.rsplit(".", 1)
    if config["model_type"] == "llama" and module in ("self_attn.q_proj", "self_attn.k_proj"):
        heads = config["num_attention_heads" if module.endswith("q_proj") else "num_key_value_heads"]
        values = permute(values, heads)
    return {f"{prefix}{_LAYER_NAMES[module]}.{kind}": values}


def permute(values: Floats, heads: int) -> Floats:
    """Half-split rotary rows to the interleaved order that llama files are stored in."""
    pairs = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def _split_kv_b(config: Mapping[str, Any], prefix: str, values: Floats) -> dict[str, Floats]:
    """kv_b per head: the key half transposed, [heads, latent, nope]; the value half as it is."""
    heads, nope, value = config["num_attention_heads"], config["qk_nope_head_dim"], config["v_head_dim"]
    by_head = values.reshape(heads, nope + value, config["kv_lora_rank"])
    return {
        f"{prefix}attn_k_b.weight": np.ascontiguousarray(by_head[:, :nope].transpose(0, 2, 1)),
        f"{prefix}attn_v_b.weight": np.ascontiguousarray(by_head[:, nope:]),
    }


def _stacked_experts(config: Mapping[str, Any], tensors: Mapping[str, Floats]) -> dict[str, Floats]:
    stacked: dict[str, Floats] = {}
    for layer in range(config.get("first_k_dense_replace", 0), config["num_hidden_layers"]):
        for part in ("gate", "up", "down") if "n_routed_experts" in config else ():
            name = f"model.layers.{layer}.mlp.experts.{{}}.{part}_proj.weight"
            parts = [tensors[name.format(expert)] for expert in range(config["n_routed_experts"])]
            stacked[f"blk.{layer}.ffn_{part}_exps.weight"] = np.stack(parts)
    return stacked


def _llama3_divisors(config: Mapping[str, Any]) -> Floats:
    """What llama3's scaling divides each rotary frequency by."""
    scaling = config["rope_scaling"]
    width = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    wavelength = 2 * np.pi * config["rope_theta"] ** (np.arange(0, width, 2) / width)
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    original = scaling["original_max_position_embeddings"]
    smooth = (original / wavelength - low) / (high - low)
    blended = 1 / ((1 - smooth) / factor + smooth)
    divisors = np.where(wavelength < original / high, 1.0, np.where(wavelength > original / low, factor, blended))
    return divisors.astype(np.float32)
