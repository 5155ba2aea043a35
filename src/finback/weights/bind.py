"""Binding: which published bytes make which field of the model. No data is read here, only names, shapes and formats.

:func:`field_shapes` says what an architecture needs, under Finback's own names; the tables below say what Hugging
Face and GGUF call it; :func:`bind` joins the two into one :class:`Source` per field, and refuses what does not fit
before anybody spends time on it. Everything is rows: an expert, a head's half of a projection, or half of a fused
tensor is a run of whole rows of a published tensor, so quantised values are moved, never recomputed. The exceptions
are said in ``note``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from finback.errors import MissingTensor, ShapeMismatch, UnsupportedModel
from finback.weights.config import ModelConfig, MoeConfig
from finback.weights.formats import MATRIX_FORMATS

if TYPE_CHECKING:
    from finback.weights.checkpoint import Checkpoint, TensorInfo

Shape = tuple[int, ...]

FP8_TILE_COLUMNS = 128  # columns that share one scale in the packed f8_e4m3 layout
FP8_DEFAULT_BLOCK = (128, 128)
VECTOR_FORMATS = ("f32", "f16", "bf16")
SCALE_FORMATS = ("f32", "bf16", "f16", "f8_e8m0", "u8")
HALVES = ("bf16", "f16")  # a transposed copy may stay in these; block formats cannot be transposed

# Field of the whole model: (Hugging Face names, GGUF names); the first that exists is taken.
_TOP_NAMES: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "embed": (("model.embed_tokens.weight",), ("token_embd.weight",)),
    "norm": (("model.norm.weight",), ("output_norm.weight",)),
    "head": (("lm_head.weight",), ("output.weight",)),
    "rope_freqs": ((), ("rope_freqs.weight",)),
}

# Field of a layer: the same, behind the layer's prefix.
_LAYER_NAMES: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "attn_norm": (("input_layernorm.weight",), ("attn_norm.weight",)),
    "mlp_norm": (("post_attention_layernorm.weight",), ("ffn_norm.weight",)),
    "attn.q": (("self_attn.q_proj.weight",), ("attn_q.weight",)),
    "attn.k": (("self_attn.k_proj.weight",), ("attn_k.weight",)),
    "attn.v": (("self_attn.v_proj.weight",), ("attn_v.weight",)),
    "attn.o": (("self_attn.o_proj.weight",), ("attn_output.weight",)),
    "attn.q_bias": (("self_attn.q_proj.bias",), ("attn_q.bias",)),
    "attn.k_bias": (("self_attn.k_proj.bias",), ("attn_k.bias",)),
    "attn.v_bias": (("self_attn.v_proj.bias",), ("attn_v.bias",)),
    "attn.o_bias": (("self_attn.o_proj.bias",), ("attn_output.bias",)),
    "attn.q_norm": (("self_attn.q_norm.weight",), ("attn_q_norm.weight",)),
    "attn.k_norm": (("self_attn.k_norm.weight",), ("attn_k_norm.weight",)),
    "attn.q_a": (("self_attn.q_a_proj.weight",), ("attn_q_a.weight",)),
    "attn.q_a_norm": (("self_attn.q_a_layernorm.weight",), ("attn_q_a_norm.weight",)),
    "attn.q_b": (("self_attn.q_b_proj.weight",), ("attn_q_b.weight",)),
    "attn.kv_a": (("self_attn.kv_a_proj_with_mqa.weight",), ("attn_kv_a_mqa.weight",)),
    "attn.q_a_bias": (("self_attn.q_a_proj.bias",), ("attn_q_a.bias",)),
    "attn.kv_a_bias": (("self_attn.kv_a_proj_with_mqa.bias",), ("attn_kv_a_mqa.bias",)),
    "attn.kv_a_norm": (("self_attn.kv_a_layernorm.weight",), ("attn_kv_a_norm.weight",)),
    "mlp.gate": (("mlp.gate_proj.weight",), ("ffn_gate.weight",)),
    "mlp.up": (("mlp.up_proj.weight",), ("ffn_up.weight",)),
    "mlp.down": (("mlp.down_proj.weight",), ("ffn_down.weight",)),
    "moe.router": (("mlp.gate.weight",), ("ffn_gate_inp.weight",)),
    "moe.router_bias": (("mlp.gate.e_score_correction_bias",), ("exp_probs_b.bias", "exp_probs_b")),
    "moe.shared_gate": (("mlp.shared_experts.gate_proj.weight",), ("ffn_gate_shexp.weight",)),
    "moe.shared_up": (("mlp.shared_experts.up_proj.weight",), ("ffn_up_shexp.weight",)),
    "moe.shared_down": (("mlp.shared_experts.down_proj.weight",), ("ffn_down_shexp.weight",)),
}
# ``{e}`` is the expert; names without it hold all experts in one tensor.
_EXPERT_NAMES: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "moe.gate": (("mlp.experts.{e}.gate_proj.weight",), ("ffn_gate_exps.weight",)),
    "moe.up": (("mlp.experts.{e}.up_proj.weight",), ("ffn_up_exps.weight",)),
    "moe.down": (("mlp.experts.{e}.down_proj.weight", "mlp.experts.down_proj"), ("ffn_down_exps.weight",)),
}
# Gate rows first, then up rows, of every expert.
_FUSED_NAMES = ("mlp.experts.gate_up_proj", "ffn_gate_up_exps.weight")
# The whole up-projection of the latent (per head: key rows, then value rows), or its GGUF halves.
_LATENT_NAME = ("self_attn.kv_b_proj.weight", "attn_kv_b.weight")
_KEY_HALF, _VALUE_HALF = "attn_k_b.weight", "attn_v_b.weight"

# Stored by GGUF llama with the halves of each head interleaved.
_PERMUTED = ("attn.q", "attn.k", "attn.q_bias", "attn.k_bias")

_LAYER_INDEX = re.compile(r"(?:model\.layers|blk)\.(\d{1,6})\.")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows [start, stop) of a published tensor, all of whose dimensions but the last are counted as rows."""

    tensor: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Source:
    """Where a field comes from. Invariant: the pieces (one per expert) exist, fit ``shape``, and share one format."""

    field: str
    shape: Shape  # (n,): a float32 vector; (experts, rows, columns): a matrix
    pieces: tuple[Rows, ...]
    format: str  # published
    tile_format: str  # packed, unless a narrower one is asked for
    note: str = ""
    unpermute_heads: int = 0  # GGUF llama interleaves the halves of each of these heads
    transpose: bool = False  # the pieces are [columns, rows]
    fp8_block: tuple[int, int] | None = None  # rows, columns per published scale

    @property
    def is_vector(self) -> bool:
        """Whether the field is a float32 vector rather than a matrix."""
        return len(self.shape) == 1


@dataclass(frozen=True, slots=True)
class Binding:
    """The sources of all fields, and the published tensors that no field uses."""

    sources: Mapping[str, Source]
    unused: tuple[str, ...]  # unknown: reported, not fatal
    skipped: tuple[str, ...]  # known and not run: prediction layers


def scale_name(tensor: str) -> str:
    """The name of an FP8 tensor's block scales."""
    return tensor.removesuffix(".weight") + ".weight_scale_inv"


# ---- what an architecture needs ----


def field_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every field with its shape: (n,) for vectors, (experts, rows, columns) for matrices."""
    shapes: dict[str, Shape] = {
        "embed": (1, config.vocab_size, config.hidden_size),
        "norm": (config.hidden_size,),
    }
    if not config.tie_word_embeddings:
        shapes["head"] = (1, config.vocab_size, config.hidden_size)
    for layer in range(config.num_hidden_layers):
        for name, shape in _layer_shapes(config, layer):
            shapes[f"layers.{layer}.{name}"] = shape
    return shapes


def _layer_shapes(config: ModelConfig, layer: int) -> Iterator[tuple[str, Shape]]:
    yield "attn_norm", (config.hidden_size,)
    yield "mlp_norm", (config.hidden_size,)
    yield from _mla_shapes(config) if config.is_mla else _gqa_shapes(config)
    if config.moe is not None and config.is_moe_layer(layer):
        yield from _moe_shapes(config.moe, config.hidden_size)
    else:
        yield from _mlp_shapes("mlp.", config.hidden_size, config.intermediate_size)


def _gqa_shapes(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    hidden, dim = config.hidden_size, config.head_dim
    q, kv = config.num_attention_heads * dim, config.num_key_value_heads * dim
    yield "attn.q", (1, q, hidden)
    yield "attn.k", (1, kv, hidden)
    yield "attn.v", (1, kv, hidden)
    yield "attn.o", (1, hidden, q)
    if config.attention_bias:
        yield from (("attn.q_bias", (q,)), ("attn.k_bias", (kv,)), ("attn.v_bias", (kv,)))
    if config.attention_out_bias:
        yield "attn.o_bias", (hidden,)
    if config.qk_norm:
        yield from (("attn.q_norm", (dim,)), ("attn.k_norm", (dim,)))


def _mla_shapes(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    hidden, heads, latent = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    nope, value, rank = config.qk_nope_head_dim, config.v_head_dim, config.q_lora_rank
    if rank is None:
        yield "attn.q", (1, heads * config.qk_head_dim, hidden)
    else:
        yield "attn.q_a", (1, rank, hidden)
        yield "attn.q_a_norm", (rank,)
        yield "attn.q_b", (1, heads * config.qk_head_dim, rank)
    yield "attn.kv_a", (1, latent + config.qk_rope_head_dim, hidden)
    yield "attn.kv_a_norm", (latent,)
    yield "attn.k_up", (heads, nope, latent)
    yield "attn.v_up", (heads, value, latent)
    yield "attn.k_absorb", (heads, latent, nope)
    yield "attn.o", (1, hidden, heads * value)
    if config.attention_bias:
        yield "attn.kv_a_bias", (latent + config.qk_rope_head_dim,)
        if rank is not None:
            yield "attn.q_a_bias", (rank,)
    if config.attention_out_bias:
        yield "attn.o_bias", (hidden,)


def _mlp_shapes(prefix: str, hidden: int, width: int, experts: int = 1) -> Iterator[tuple[str, Shape]]:
    yield prefix + "gate", (experts, width, hidden)
    yield prefix + "up", (experts, width, hidden)
    yield prefix + "down", (experts, hidden, width)


def _moe_shapes(moe: MoeConfig, hidden: int) -> Iterator[tuple[str, Shape]]:
    yield "moe.router", (1, moe.n_routed_experts, hidden)
    if moe.has_bias:
        yield "moe.router_bias", (moe.n_routed_experts,)
    yield from _mlp_shapes("moe.", hidden, moe.moe_intermediate_size, moe.n_routed_experts)
    if moe.n_shared_experts:
        yield from _mlp_shapes("moe.shared_", hidden, moe.shared_intermediate_size)


# ---- where the files have it ----


def bind(checkpoint: Checkpoint, config: ModelConfig) -> Binding:
    """Find the source of every field that ``config`` asks for; raise before any data is read if one does not fit."""
    binder = _Binder(checkpoint, config)
    sources = {field: binder.locate(field, shape) for field, shape in field_shapes(config).items()}
    if "rope_freqs.weight" in checkpoint.tensors and not config.is_mla:
        sources["rope_freqs"] = binder.locate("rope_freqs", (config.head_dim // 2,))
    unused, skipped = binder.leftovers()
    return Binding(sources, unused, skipped)


class _Binder:
    """Looks fields up in one checkpoint and remembers which tensors were used."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig) -> None:
        self._tensors = checkpoint.tensors
        self._config = config
        self._gguf = checkpoint.kind == "gguf"
        self._used: set[str] = set()

    def locate(self, field: str, shape: Shape) -> Source:
        """The source of one field, checked against the shape that the configuration implies."""
        prefix, name = self._split(field)
        if name in _EXPERT_NAMES:
            pieces = self._experts(prefix, name, shape)
        elif name in ("attn.k_up", "attn.v_up", "attn.k_absorb"):
            return self._latent(field, prefix, name, shape)
        else:
            pieces = self._plain(field, prefix, name, shape)
        source = self._source(field, shape, pieces)
        permuted = self._gguf and self._config.model_type == "llama" and name in _PERMUTED
        return replace(source, unpermute_heads=self._heads(name)) if permuted else source

    def leftovers(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The tensors that no field used: unknown ones, and those of layers beyond the last that runs."""
        left = [name for name in self._tensors if name not in self._used]
        skipped = tuple(name for name in left if self._is_beyond(name))
        # Old exports carry the rotary frequencies, which follow from the configuration.
        beyond = set(skipped)
        unused = [n for n in left if n not in beyond and not n.endswith("rotary_emb.inv_freq")]
        return tuple(unused), skipped

    def _is_beyond(self, name: str) -> bool:
        match = _LAYER_INDEX.match(name)
        return match is not None and int(match[1]) >= self._config.num_hidden_layers

    def _split(self, field: str) -> tuple[str, str]:
        """The published prefix of a field's layer, and the field's name inside the layer."""
        if not field.startswith("layers."):
            return "", field
        _, layer, name = field.split(".", 2)
        return (f"blk.{layer}." if self._gguf else f"model.layers.{layer}."), name

    def _heads(self, name: str) -> int:
        config = self._config
        return config.num_attention_heads if name.startswith("attn.q") else config.num_key_value_heads

    def _plain(self, field: str, prefix: str, name: str, shape: Shape) -> tuple[Rows, ...]:
        names = (_TOP_NAMES if name == field else _LAYER_NAMES)[name][self._gguf]
        tensor = self._first(prefix, names)
        expected = shape if len(shape) == 1 else shape[1:]
        self._check_shape(tensor, expected)
        return (Rows(tensor, 0, 1 if len(shape) == 1 else shape[1]),)

    def _experts(self, prefix: str, name: str, shape: Shape) -> tuple[Rows, ...]:
        """One run of rows per expert, from a tensor per expert, a stack, or a stack of gates fused with ups."""
        experts, rows, cols = shape
        fused = prefix + _FUSED_NAMES[self._gguf]
        if name != "moe.down" and fused in self._tensors:
            self._check_shape(fused, (experts, 2 * rows, cols))
            first = rows if name == "moe.up" else 0
            starts = [e * 2 * rows + first for e in range(experts)]
            return tuple(Rows(fused, start, start + rows) for start in starts)
        names = _EXPERT_NAMES[name][self._gguf]
        stacked = [prefix + n for n in names if "{e}" not in n and prefix + n in self._tensors]
        if self._gguf or stacked:
            tensor = self._first(prefix, names)
            self._check_shape(tensor, shape)
            return tuple(Rows(tensor, e * rows, (e + 1) * rows) for e in range(experts))
        tensors = [self._first(prefix, [names[0].format(e=e)]) for e in range(experts)]
        for tensor in tensors:
            self._check_shape(tensor, (rows, cols))
        return tuple(Rows(tensor, 0, rows) for tensor in tensors)

    def _latent(self, field: str, prefix: str, name: str, shape: Shape) -> Source:
        """Rows of kv_b, or of GGUF's halves, of which the key half is published transposed."""
        halves = (prefix + _KEY_HALF, prefix + _VALUE_HALF)
        if self._gguf and all(half in self._tensors for half in halves):
            return self._latent_half(field, halves[name == "attn.v_up"], name, shape)
        heads, nope, value = shape[0], self._config.qk_nope_head_dim, self._config.v_head_dim
        tensor = self._first(prefix, [_LATENT_NAME[self._gguf]])
        self._check_shape(tensor, (heads * (nope + value), self._config.kv_lora_rank))
        first, rows = (nope, value) if name == "attn.v_up" else (0, nope)
        starts = [head * (nope + value) + first for head in range(heads)]
        pieces = tuple(Rows(tensor, start, start + rows) for start in starts)
        return self._source(field, shape, pieces, transpose=name == "attn.k_absorb")

    def _latent_half(self, field: str, tensor: str, name: str, shape: Shape) -> Source:
        heads, rows, cols = shape
        transpose = name == "attn.k_up"
        if transpose:
            rows, cols = cols, rows
        self._check_shape(tensor, (heads, rows, cols), (heads * rows, cols))
        pieces = tuple(Rows(tensor, head * rows, (head + 1) * rows) for head in range(heads))
        return self._source(field, shape, pieces, transpose=transpose)

    def _first(self, prefix: str, names: Sequence[str]) -> str:
        for name in names:
            if prefix + name in self._tensors:
                self._used.add(prefix + name)
                return prefix + name
        raise MissingTensor(
            f"the files have no tensor {prefix + names[0]}, which {self._config.model_type} needs",
            hint="the download may be incomplete, or the configuration may belong to another model",
        )

    def _check_shape(self, tensor: str, *allowed: Shape) -> None:
        info = self._tensors[tensor]
        if tuple(info.shape) not in allowed:
            expected = " or ".join(str(list(shape)) for shape in allowed)
            raise ShapeMismatch(f"tensor {tensor} has shape {list(info.shape)}; the configuration implies {expected}")
        self._used.add(tensor)

    # ---- formats ----

    def _source(self, field: str, shape: Shape, pieces: tuple[Rows, ...], *, transpose: bool = False) -> Source:
        format = self._one_format(pieces)
        allowed = VECTOR_FORMATS if len(shape) == 1 else MATRIX_FORMATS
        if format not in allowed:
            raise UnsupportedModel(
                f"tensor {pieces[0].tensor} is stored as {format}; here Finback reads {', '.join(allowed)}"
            )
        block = self._fp8_block(pieces) if format == "f8_e4m3" else None
        tile, note = _tile_format(field, shape, format, block, transpose=transpose)
        return Source(field, shape, pieces, format, tile, note, transpose=transpose, fp8_block=block)

    def _one_format(self, pieces: tuple[Rows, ...]) -> str:
        first = self._tensors[pieces[0].tensor]
        for piece in pieces:
            other = self._tensors[piece.tensor]
            if other.format != first.format:
                raise ShapeMismatch(
                    f"tensor {piece.tensor} is stored as {other.format}, but {pieces[0].tensor} as {first.format}; "
                    "the experts of a layer must share one format"
                )
        return first.format

    def _fp8_block(self, pieces: tuple[Rows, ...]) -> tuple[int, int]:
        """Rows and columns per scale, after checking every scale tensor's format and shape."""
        blocks = {self._fp8_block_of(tensor) for tensor in {piece.tensor for piece in pieces}}
        if len(blocks) != 1:
            raise ShapeMismatch(f"the experts beside {pieces[0].tensor} have scale blocks of different sizes")
        return blocks.pop()

    def _fp8_block_of(self, tensor: str) -> tuple[int, int]:
        info = self._tensors[tensor]
        if len(info.shape) != 2:
            raise UnsupportedModel(f"tensor {tensor} holds FP8 values in {len(info.shape)} dimensions, not 2")
        name = self._first("", [scale_name(tensor)])
        scales = self._tensors[name]
        if scales.format not in SCALE_FORMATS:
            raise UnsupportedModel(f"the scales {name} are stored as {scales.format}, not {', '.join(SCALE_FORMATS)}")
        return _match_block(name, tensor, info, scales, self._config.fp8_block or FP8_DEFAULT_BLOCK)


def _match_block(
    name: str, tensor: str, info: TensorInfo, scales: TensorInfo, block: tuple[int, int]
) -> tuple[int, int]:
    """The block size that the scales' shape stands for: the configured one, or one that divides the weight evenly."""
    rows, cols = info.shape
    grid = tuple(scales.shape)
    if grid in ((), (1,)):
        return rows, cols
    if block != (0, 0) and grid == (-(-rows // block[0]), -(-cols // block[1])):
        return block
    if len(grid) == 2 and all(grid) and rows % grid[0] == 0 and cols % grid[1] == 0:
        return rows // grid[0], cols // grid[1]
    raise ShapeMismatch(
        f"the scales {name} have shape {list(grid)}, which does not cut {tensor} of shape {list(info.shape)} "
        f"into blocks of {block[0]} x {block[1]}"
    )


def _tile_format(
    field: str, shape: Shape, format: str, block: tuple[int, int] | None, *, transpose: bool
) -> tuple[str, str]:
    """The packed format that keeps the published values, and a note where it is wider than the published one."""
    if len(shape) == 1 or field.endswith("moe.router"):
        return "f32", "" if format == "f32" else "widened to float32"
    if transpose:
        tile = format if format in HALVES else "f32"
        return tile, "transposed copy" + ("" if tile == format else f", widened to {tile}")
    if block is not None and not fp8_fits_tile(block[1], shape[2]):
        return "f32", f"widened to f32: scale blocks of {block[1]} columns do not fit the tile's {FP8_TILE_COLUMNS}"
    return format, ""


def fp8_fits_tile(block_cols: int, cols: int) -> bool:
    """Whether each of the tile's column blocks lies inside one published scale block."""
    return block_cols >= cols or block_cols % FP8_TILE_COLUMNS == 0
