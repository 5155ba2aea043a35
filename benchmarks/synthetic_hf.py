"""The synthetic models of `benchmarks.synthetic` as safetensors folders, as Hugging Face publishes them: BF16, or FP8
with a scale for every 128 x 128 weights as DeepSeek-V3 has them. Called by ``python -m benchmarks.synthetic``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.synthetic import Geometry

SCALE_BLOCK = 128
POOL_BYTES = 1 << 20  # random bytes that every tensor is tiled from


class Tensor(NamedTuple):
    """A tensor as it is stored: its bytes come from ``data``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    std: float  # of its values; 0: all ones

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return int(np.prod(self.shape)) * {"F8_E4M3": 1, "BF16": 2, "F32": 4}[self.dtype]

    def data(self, rng: np.random.Generator) -> np.ndarray:
        """Random bytes whose values have the standard deviation: one binary exponent, any sign and mantissa."""
        if not self.std:
            return np.full(self.nbytes // 2, 0x3F80, np.uint16).view(np.uint8)
        if self.dtype == "F32":
            return np.full(self.nbytes // 4, self.std, np.float32).view(np.uint8)
        pool = rng.integers(0, 256, min(POOL_BYTES, self.nbytes), np.uint8)
        if self.dtype == "F8_E4M3":
            pool = (pool & 0x87) | 0x38
        else:
            exponent = int(np.float32(self.std).view(np.uint32) >> 23)
            words = pool.view(np.uint16)
            words[:] = (words & 0x807F) | (exponent << 7)
        return np.resize(pool, self.nbytes)


def _linear(name: str, rows: int, cols: int, *, fp8: bool) -> Iterator[Tensor]:
    std = cols**-0.5
    if not fp8:
        yield Tensor(f"{name}.weight", "BF16", (rows, cols), std)
        return
    blocks = (-(-rows // SCALE_BLOCK), -(-cols // SCALE_BLOCK))
    yield Tensor(f"{name}.weight", "F8_E4M3", (rows, cols), std)
    yield Tensor(f"{name}.weight_scale_inv", "F32", blocks, std / 1.46)  # the codes' own deviation


def _norm(name: str, size: int) -> Tensor:
    return Tensor(f"{name}.weight", "BF16", (size,), 0.0)


def _swiglu(name: str, hidden: int, inner: int, *, fp8: bool) -> Iterator[Tensor]:
    yield from _linear(f"{name}.gate_proj", inner, hidden, fp8=fp8)
    yield from _linear(f"{name}.up_proj", inner, hidden, fp8=fp8)
    yield from _linear(f"{name}.down_proj", hidden, inner, fp8=fp8)


def _attention(g: Geometry, name: str, *, fp8: bool) -> Iterator[Tensor]:
    if g.arch == "deepseek2":
        yield from _linear(f"{name}.q_proj", g.heads * (g.nope + g.rope), g.hidden, fp8=fp8)
        yield from _linear(f"{name}.kv_a_proj_with_mqa", g.kv_lora + g.rope, g.hidden, fp8=fp8)
        yield _norm(f"{name}.kv_a_layernorm", g.kv_lora)
        yield from _linear(f"{name}.kv_b_proj", g.heads * (g.nope + g.v_dim), g.kv_lora, fp8=fp8)
        yield from _linear(f"{name}.o_proj", g.hidden, g.heads * g.v_dim, fp8=fp8)
        return
    for part, heads in (("q", g.heads), ("k", g.kv_heads), ("v", g.kv_heads)):
        yield from _linear(f"{name}.{part}_proj", heads * g.head_dim, g.hidden, fp8=fp8)
        if g.arch == "qwen2":
            yield Tensor(f"{name}.{part}_proj.bias", "BF16", (heads * g.head_dim,), 0.1)
    yield from _linear(f"{name}.o_proj", g.hidden, g.heads * g.head_dim, fp8=fp8)


def _feed_forward(g: Geometry, name: str, layer: int, *, fp8: bool) -> Iterator[Tensor]:
    if not g.experts or layer < g.dense_layers:
        yield from _swiglu(name, g.hidden, g.inter, fp8=fp8)
        return
    yield from _linear(f"{name}.gate", g.experts, g.hidden, fp8=False)
    yield from _swiglu(f"{name}.shared_experts", g.hidden, g.expert_inter * g.shared, fp8=fp8)
    for expert in range(g.experts):
        yield from _swiglu(f"{name}.experts.{expert}", g.hidden, g.expert_inter, fp8=fp8)


def tensors(g: Geometry, *, fp8: bool) -> Iterator[Tensor]:
    """Every tensor of the model under its Hugging Face name."""
    yield Tensor("model.embed_tokens.weight", "BF16", (g.vocab, g.hidden), 1.0)
    yield _norm("model.norm", g.hidden)
    if not g.tied:
        yield from _linear("lm_head", g.vocab, g.hidden, fp8=False)
    for i in range(g.layers):
        layer = f"model.layers.{i}"
        yield _norm(f"{layer}.input_layernorm", g.hidden)
        yield _norm(f"{layer}.post_attention_layernorm", g.hidden)
        yield from _attention(g, f"{layer}.self_attn", fp8=fp8)
        yield from _feed_forward(g, f"{layer}.mlp", i, fp8=fp8)


def config(g: Geometry, *, fp8: bool) -> dict[str, Any]:
    """config.json."""
    made: dict[str, Any] = {
        "model_type": {"deepseek2": "deepseek_v2"}.get(g.arch, g.arch),
        "vocab_size": g.vocab,
        "hidden_size": g.hidden,
        "intermediate_size": g.inter,
        "num_hidden_layers": g.layers,
        "num_attention_heads": g.heads,
        "num_key_value_heads": g.heads if g.arch == "deepseek2" else g.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": g.rope_theta,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": g.tied,
        "torch_dtype": "bfloat16",
        "bos_token_id": g.vocab - 2,
        "eos_token_id": g.vocab - 1,
    }
    if g.arch == "deepseek2":
        made |= {
            "kv_lora_rank": g.kv_lora, "q_lora_rank": None, "qk_nope_head_dim": g.nope, "qk_rope_head_dim": g.rope,
            "v_head_dim": g.v_dim, "n_routed_experts": g.experts, "num_experts_per_tok": g.experts_used,
            "n_shared_experts": g.shared, "moe_intermediate_size": g.expert_inter,
            "first_k_dense_replace": g.dense_layers, "moe_layer_freq": 1, "topk_method": "greedy", "n_group": 1,
            "topk_group": 1, "norm_topk_prob": False, "scoring_func": "softmax", "routed_scaling_factor": 1.0,
        }  # fmt: skip
    else:
        made["head_dim"] = g.head_dim
    if fp8:
        made["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [SCALE_BLOCK, SCALE_BLOCK]}
    return made


def write(g: Geometry, recipe: str, folder: Path, *, seed: int = 1) -> None:
    """Write config.json and model.safetensors; ``recipe`` is bf16 or fp8."""
    fp8 = recipe == "fp8"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(g, fp8=fp8), indent=1))
    plan = list(tensors(g, fp8=fp8))
    header, at = {}, 0
    for tensor in plan:
        end = at + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(seed)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in plan:
            file.write(tensor.data(rng))
