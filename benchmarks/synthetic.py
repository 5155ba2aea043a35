"""Writes synthetic models: a published model's geometry, random weights of sane size, in a chosen format, as GGUF or as
a safetensors folder.

    python -m benchmarks.synthetic v2-lite q4_0 /tmp/v2-lite-q4_0.gguf
    python -m benchmarks.synthetic qwen-1.5b fp8 /tmp/qwen-1.5b-fp8

Speed depends on shapes and formats, not on values, so these files stand for the published ones where those cannot be
had. They are written by the ``gguf`` package (the extra ``parity``), so that every engine that reads GGUF accepts them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

POOL_BLOCKS = 1 << 14  # random blocks that every tensor is tiled from


@dataclass(frozen=True)
class Geometry:
    """What the shapes need to know. Invariant: MLA fields are set for arch deepseek2, expert fields for MoE."""

    arch: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inter: int
    head_dim: int = 128
    rope_theta: float = 10000.0
    tied: bool = False
    kv_lora: int = 0
    nope: int = 0
    rope: int = 0
    v_dim: int = 0
    experts: int = 0
    experts_used: int = 0
    shared: int = 0
    expert_inter: int = 0
    dense_layers: int = 0


GEOMETRIES = {
    "smollm2-135m": Geometry("llama", 49152, 576, 30, 9, 3, 1536, head_dim=64, rope_theta=1e5, tied=True),
    "qwen-1.5b": Geometry("qwen2", 151936, 1536, 28, 12, 2, 8960),
    "qwen-7b": Geometry("qwen2", 152064, 3584, 28, 28, 4, 18944),
    "llama-8b": Geometry("llama", 128256, 4096, 32, 32, 8, 14336, rope_theta=5e5),
    "v2-lite": Geometry(
        "deepseek2", 102400, 2048, 27, 16, 1, 10944, 
        kv_lora=512, nope=128, rope=64, v_dim=128,
        experts=64, experts_used=6, shared=2, expert_inter=1408, dense_layers=1,
    ),
}  # fmt: skip


class Tensor(NamedTuple):
    """Name, shape (slowest axis first) and how sensitive the tensor is: 0 vectors, 1 usual, 2 kept wider."""

    name: str
    shape: tuple[int, ...]
    rank: int = 1


def tensors(g: Geometry) -> Iterator[Tensor]:
    """Every tensor of the model under its GGUF name."""
    yield Tensor("token_embd.weight", (g.vocab, g.hidden))
    yield Tensor("output_norm.weight", (g.hidden,), 0)
    if not g.tied:
        yield Tensor("output.weight", (g.vocab, g.hidden), 2)
    for i in range(g.layers):
        layer = [*_attention(g), *_feed_forward(g, i)]
        yield from (Tensor(f"blk.{i}.{name}", shape, rank) for name, shape, rank in layer)


def _attention(g: Geometry) -> Iterator[Tensor]:
    yield Tensor("attn_norm.weight", (g.hidden,), 0)
    if g.arch == "deepseek2":
        yield Tensor("attn_q.weight", (g.heads * (g.nope + g.rope), g.hidden))
        yield Tensor("attn_kv_a_mqa.weight", (g.kv_lora + g.rope, g.hidden))
        yield Tensor("attn_kv_a_norm.weight", (g.kv_lora,), 0)
        yield Tensor("attn_k_b.weight", (g.heads, g.kv_lora, g.nope))
        yield Tensor("attn_v_b.weight", (g.heads, g.v_dim, g.kv_lora))
        yield Tensor("attn_output.weight", (g.hidden, g.heads * g.v_dim))
        return
    widths = {"q": g.heads * g.head_dim, "k": g.kv_heads * g.head_dim, "v": g.kv_heads * g.head_dim}
    for name, rows in widths.items():
        yield Tensor(f"attn_{name}.weight", (rows, g.hidden), 2 if name == "v" else 1)
        if g.arch == "qwen2":
            yield Tensor(f"attn_{name}.bias", (rows,), 0)
    yield Tensor("attn_output.weight", (g.hidden, g.heads * g.head_dim))


def _feed_forward(g: Geometry, layer: int) -> Iterator[Tensor]:
    yield Tensor("ffn_norm.weight", (g.hidden,), 0)
    if not g.experts or layer < g.dense_layers:
        yield from _swiglu(g.hidden, g.inter, "", ())
        return
    yield Tensor("ffn_gate_inp.weight", (g.experts, g.hidden), 0)
    yield from _swiglu(g.hidden, g.expert_inter, "_exps", (g.experts,))
    yield from _swiglu(g.hidden, g.expert_inter * g.shared, "_shexp", ())


def _swiglu(hidden: int, inter: int, suffix: str, lead: tuple[int, ...]) -> Iterator[Tensor]:
    yield Tensor(f"ffn_gate{suffix}.weight", (*lead, inter, hidden))
    yield Tensor(f"ffn_up{suffix}.weight", (*lead, inter, hidden))
    yield Tensor(f"ffn_down{suffix}.weight", (*lead, hidden, inter), 2)


def chosen_type(recipe: str, tensor: Tensor, layers: int) -> Type:
    """The block type of a tensor. q4_k_m widens the head, half of the sensitive tensors, and what 256 does not
    divide."""
    if tensor.rank == 0:
        return Type.F32
    if recipe != "q4_k_m":
        return {"q4_0": Type.Q4_0, "q4_1": Type.Q4_1, "q8_0": Type.Q8_0, "bf16": Type.BF16, "mxfp4": Type.MXFP4}[recipe]
    wide = tensor.rank == 2 and (tensor.name == "output.weight" or _layer_is_wide(tensor, layers))
    if tensor.shape[-1] % 256:
        return Type.Q8_0 if wide else Type.Q5_0
    return Type.Q6_K if wide else Type.Q4_K


def _layer_is_wide(tensor: Tensor, layers: int) -> bool:
    """llama.cpp's choice (use_more_bits in llama-quant.cpp): the first and the last eighth, and each third between."""
    layer, eighth = int(tensor.name.split(".")[1]), layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _half(value: float) -> np.ndarray:
    return np.array([value], np.float16).view(np.uint8)


def _blocks_q4_0(random: np.ndarray, std: float) -> None:
    random[:, 0:2] = _half(std / 4.6)


def _blocks_q4_1(random: np.ndarray, std: float) -> None:
    random[:, 0:2] = _half(std / 4.6)
    random[:, 2:4] = _half(-7.5 * std / 4.6)


def _blocks_q5_0(random: np.ndarray, std: float) -> None:
    random[:, 0:2] = _half(std / 9.2)


def _blocks_q8_0(random: np.ndarray, std: float) -> None:
    random[:, 0:2] = _half(std / 74.0)


def _blocks_q4_k(random: np.ndarray, std: float) -> None:
    """Sub-scales and sub-minima 32; minima cancel the mean of the codes."""
    random[:, 0:2] = _half(std / 4.6 / 32)
    random[:, 2:4] = _half(7.5 * std / 4.6 / 32)
    random[:, 4:12] = 32
    random[:, 12:16] = 0
    random[:, 4:8] |= 0x80  # upper halves of sub-blocks 4 to 7: 2 << 4 = 32
    random[:, 8:12] |= 0x80


def _blocks_q6_k(random: np.ndarray, std: float) -> None:
    random[:, 192:208] = 32
    random[:, 208:210] = _half(std / 18.5 / 32)


def _blocks_bf16(random: np.ndarray, std: float) -> None:
    exponent = np.clip(np.float32(std).view(np.uint32) >> 23, 1, 254).astype(np.uint16)
    words = random.view(np.uint16)
    words[:] = (words & 0x807F) | (exponent << 7)


def _blocks_mxfp4(random: np.ndarray, std: float) -> None:
    random[:, 0] = int(np.clip(127 + np.round(np.log2(std / 3.0)), 1, 254))


FILL: dict[Type, Callable[[np.ndarray, float], None]] = {
    Type.Q4_0: _blocks_q4_0,
    Type.Q4_1: _blocks_q4_1,
    Type.Q5_0: _blocks_q5_0,
    Type.Q8_0: _blocks_q8_0,
    Type.Q4_K: _blocks_q4_k,
    Type.Q6_K: _blocks_q6_k,
    Type.BF16: _blocks_bf16,
    Type.MXFP4: _blocks_mxfp4,
}


def data_of(tensor: Tensor, kind: Type, rng: np.random.Generator) -> np.ndarray:
    """Random bytes of a tensor: its values have the standard deviation 1/sqrt(columns)."""
    if kind == Type.F32:
        value = 1.0 if "norm" in tensor.name else 0.0
        noise = rng.standard_normal(tensor.shape, dtype=np.float32)
        return (value + noise * (0.1 if len(tensor.shape) == 1 else tensor.shape[-1] ** -0.5)).astype(np.float32)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    pool = rng.integers(0, 256, (POOL_BLOCKS, size), dtype=np.uint8)
    FILL[kind](pool, tensor.shape[-1] ** -0.5)
    row_bytes = tensor.shape[-1] // block * size
    count = int(np.prod(tensor.shape)) // block
    repeats = -(-count // POOL_BLOCKS)
    return np.tile(pool.reshape(-1), repeats)[: count * size].reshape(*tensor.shape[:-1], row_bytes)


def _write_metadata(writer: gguf.GGUFWriter, g: Geometry) -> None:
    writer.add_block_count(g.layers)
    writer.add_context_length(32768)
    writer.add_embedding_length(g.hidden)
    writer.add_feed_forward_length(g.inter)
    writer.add_head_count(g.heads)
    writer.add_head_count_kv(g.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(g.rope_theta)
    writer.add_vocab_size(g.vocab)
    if g.arch == "deepseek2":
        _write_deepseek2(writer, g)
    else:
        writer.add_rope_dimension_count(g.head_dim)
    _write_tokenizer(writer, g.vocab)


def _write_deepseek2(writer: gguf.GGUFWriter, g: Geometry) -> None:
    writer.add_rope_dimension_count(g.rope)
    writer.add_kv_lora_rank(g.kv_lora)
    writer.add_key_length(g.kv_lora + g.rope)
    writer.add_value_length(g.kv_lora)
    writer.add_key_length_mla(g.nope + g.rope)
    writer.add_value_length_mla(g.v_dim)
    writer.add_leading_dense_block_count(g.dense_layers)
    writer.add_expert_count(g.experts)
    writer.add_expert_used_count(g.experts_used)
    writer.add_expert_shared_count(g.shared)
    writer.add_expert_feed_forward_length(g.expert_inter)
    writer.add_expert_weights_scale(1.0)
    writer.add_expert_weights_norm(False)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(40.0)
    writer.add_rope_scaling_orig_ctx_len(4096)
    writer.add_rope_scaling_yarn_log_mul(0.0707)


def _write_tokenizer(writer: gguf.GGUFWriter, vocab: int) -> None:
    """A byte-level vocabulary with fillers: enough for engines that insist on one."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    letters = {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}
    fillers = [f"<|filler_{i}|>" for i in range(vocab - 257)]
    tokens = [letters[b] for b in range(256)] + ["ab", *fillers]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-llm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 257 + [3] * len(fillers))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(vocab - 2)
    writer.add_eos_token_id(vocab - 1)
    writer.add_add_bos_token(False)


def write(g: Geometry, recipe: str, path: str, *, seed: int = 1) -> None:
    """Write a synthetic model as GGUF."""
    writer = gguf.GGUFWriter(path, g.arch)
    _write_metadata(writer, g)
    rng = np.random.default_rng(seed)
    plan = [(tensor, chosen_type(recipe, tensor, g.layers)) for tensor in tensors(g)]
    for tensor, kind in plan:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        raw = None if kind == Type.F32 else kind
        shape = tensor.shape if raw is None else (*tensor.shape[:-1], tensor.shape[-1] // block * size)
        dtype = np.dtype(np.float32 if raw is None else np.uint8)
        writer.add_tensor_info(tensor.name, shape, dtype, int(np.prod(shape)) * dtype.itemsize, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, kind in plan:
        writer.write_tensor_data(data_of(tensor, kind, rng))
    writer.close()


def main() -> None:
    """Command line: geometry, recipe, path."""
    from benchmarks import synthetic_hf

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("geometry", choices=GEOMETRIES)
    parser.add_argument("recipe", choices=["q4_0", "q4_1", "q8_0", "q4_k_m", "bf16", "mxfp4", "fp8"])
    parser.add_argument("path", help="a name that ends in .gguf, or a folder (bf16 and fp8) for safetensors")
    parser.add_argument("--layers", type=int, help="write fewer layers than the published model has")
    arguments = parser.parse_args()
    as_gguf = arguments.path.endswith(".gguf")
    if arguments.recipe == "fp8" if as_gguf else arguments.recipe not in ("bf16", "fp8"):
        parser.error(f"{arguments.recipe} is written to {'a folder' if as_gguf else 'a name that ends in .gguf'}")
    g = GEOMETRIES[arguments.geometry]
    if arguments.layers is not None:
        g = replace(g, layers=arguments.layers)
    if as_gguf:
        write(g, arguments.recipe, arguments.path)
    else:
        synthetic_hf.write(g, arguments.recipe, Path(arguments.path))


if __name__ == "__main__":
    main()
