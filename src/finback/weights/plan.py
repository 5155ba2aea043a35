"""What the pack will hold: the tile format of every field, its place in the file, and what that costs in bytes.

As published is the default, and the only thing that is ever done silently. Asked for ``q8`` or ``q4``, matrices of
plain floating-point models become narrower by this policy:

- float32 stays what decides or normalises: vectors and routers.
- As published stay both orientations of MLA's key up-projection: prompts use one and generated tokens the other, and
  both must hold the same values.
- ``q8``: everything else becomes q8_0.
- ``q4``: q8_0 where errors reach every later token or every logit (embedding, head, keys, values, latents) and where
  activations are largest (down-projections that every token takes); q4_1 for the experts' down-projections; q4_0 for
  the rest.
- Rows that do not divide into blocks of 32 stay as published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from finback import kernels
from finback.errors import ConfigError
from finback.weights.bind import Binding, Source
from finback.weights.config import ModelConfig

ALIGNMENT_BYTES = 4096
PLAIN_FORMATS = ("f32", "f16", "bf16", "f8_e4m3")
NarrowFormat = Literal["q8_0", "q4_0", "q4_1"]
BLOCK_COLUMNS = 32  # of q8_0, q4_0 and q4_1

_KEPT = ("attn.k_up", "attn.k_absorb", "moe.router")
_SENSITIVE = ("embed", "head", "attn.k", "attn.v", "attn.kv_a", "attn.v_up", "mlp.down", "moe.shared_down")


@dataclass(frozen=True, slots=True)
class PlannedField:
    """A field's format and place. Invariant: ``offset`` is aligned; experts follow each other in equal strides."""

    source: Source
    narrow: NarrowFormat | None  # what its values are rounded to, or None: they are kept
    note: str
    offset: int
    nbytes: int

    @property
    def tile_format(self) -> str:
        """The packed format."""
        return self.narrow or self.source.tile_format

    @property
    def padded_bytes(self) -> int:
        """Bytes up to the next field."""
        return aligned(self.nbytes)


@dataclass(frozen=True, slots=True)
class Plan:
    """All fields in file order. Invariant: they are contiguous, from offset 0 to ``nbytes``."""

    fields: tuple[PlannedField, ...]
    format: str | None
    nbytes: int


def aligned(nbytes: int) -> int:
    """``nbytes`` rounded up to whole pages."""
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def make_plan(binding: Binding, format: str | None = None) -> Plan:
    """Choose every field's tile format and lay the fields out; refuse to quantise twice."""
    if format is not None:
        _check_plain(binding.sources, format)
    fields, offset = [], 0
    for source in binding.sources.values():
        narrow, note = (None, source.note) if format is None else _narrowed(source, format)
        nbytes = _packed_bytes(source, narrow or source.tile_format)
        field = PlannedField(source, narrow, note, offset, nbytes)
        fields.append(field)
        offset += field.padded_bytes
    return Plan(tuple(fields), format, offset)


def _packed_bytes(source: Source, tile: str) -> int:
    if source.is_vector:
        return 4 * source.shape[0]
    experts, rows, cols = source.shape
    return kernels.packed_bytes(tile, rows, cols, experts)


def _check_plain(sources: Mapping[str, Source], format: str) -> None:
    for source in sources.values():
        if not source.is_vector and source.format not in PLAIN_FORMATS:
            raise ConfigError(
                f"format {format} cannot be applied: {source.pieces[0].tensor} is already quantised ({source.format})",
                hint="leave the format out to run the model as published, or pull its BF16 or FP8 edition",
            )


def _narrowed(source: Source, format: str) -> tuple[NarrowFormat | None, str]:
    """The narrower format, if any, and the note, by the policy above."""
    name = _name_in_layer(source.field)
    if source.is_vector or name in _KEPT:
        return None, source.note
    if source.shape[2] % BLOCK_COLUMNS:
        return None, f"kept: {source.shape[2]} columns are not whole blocks of {BLOCK_COLUMNS}"
    return _narrow_format(name, format), f"quantised, as asked ({format})"


def _narrow_format(name: str, format: str) -> NarrowFormat:
    if format == "q8" or name in _SENSITIVE:
        return "q8_0"
    return "q4_1" if name == "moe.down" else "q4_0"


def _name_in_layer(field: str) -> str:
    return field.split(".", 2)[2] if field.startswith("layers.") else field


def streamed_bytes_per_token(plan: Plan, config: ModelConfig) -> int:
    """Weight bytes that generating one token reads: an embedding row aside, each field once, chosen experts only."""
    return sum(_read_per_token(field, config) for field in plan.fields)


def _read_per_token(field: PlannedField, config: ModelConfig) -> int:
    name = _name_in_layer(field.source.field)
    if name == "attn.k_up" or (name == "embed" and not config.tie_word_embeddings):
        return 0  # prompts only; one row
    if config.moe is not None and name in ("moe.gate", "moe.up", "moe.down"):
        return field.nbytes // config.moe.n_routed_experts * config.moe.num_experts_per_tok
    return field.nbytes
