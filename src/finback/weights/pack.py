"""From a checkpoint to weights that kernels can run: bind, pack once into the cache, map ever after.

Packing streams: rows are read, converted and written a few dozen megabytes at a time, so a model of any size packs in
little memory. What was done to each field is the report, kept in the pack. A later start reads the headers of the
source and of the pack, and maps; pages are shared between processes and dropped by the system under pressure.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from finback import kernels
from finback.errors import MalformedFile
from finback.kernels import Matrix
from finback.weights.bind import Binding, Rows, Source, bind
from finback.weights.config import ModelConfig
from finback.weights.packfile import (
    PackIdentity,
    PackWriter,
    ReportLine,
    check_room,
    locked_writer,
    open_pack,
    planned_report,
    remove_superseded,
    stored_report,
)
from finback.weights.plan import NarrowFormat, Plan, PlannedField, make_plan, streamed_bytes_per_token
from finback.weights.published import Published

if TYPE_CHECKING:
    from finback.weights.checkpoint import Checkpoint

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]

# Counts up when the tile layout, the policy of narrower formats or the container changes.
LAYOUT_VERSION = 3
# float32 values converted at a time; with their temporaries they take a few times as many bytes.
CHUNK_ELEMENTS = 8 << 20
# Tiles belong to pairs of 8 rows; larger multiples keep the door open for wider ones.
CHUNK_ROWS = 64
PIECE_BYTES = 256 << 20  # brought in at a time


class Weights(Mapping[str, "Matrix | Floats"]):
    """Field -> Matrix or float32 vector, over one read-only mapping. Invariant: every planned field is present."""

    def __init__(
        self,
        config: ModelConfig,
        binding: Binding,
        plan: Plan,
        pack: tuple[mmap.mmap, int, tuple[ReportLine, ...]],
    ) -> None:
        mapping, start, self.report = pack
        self._data = np.frombuffer(mapping, np.uint8)[start:]
        self._fields = {field.source.field: _view(field, self._data) for field in plan.fields}
        self.unused = binding.unused  # published tensors that nothing uses
        self.skipped = binding.skipped  # published tensors of prediction layers
        self.nbytes = plan.nbytes
        self.bytes_per_token = streamed_bytes_per_token(plan, config)

    def __getitem__(self, field: str) -> Matrix | Floats:
        return self._fields[field]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def bring_in(self) -> None:
        """Read and map all of it now, for a model that fits into memory: a page that a step waits for costs far more.

        In pieces, so that an interrupt is heard while a disk is slow.
        """
        for start in range(0, self.nbytes, PIECE_BYTES):
            kernels.bring_in(self._data[start : start + PIECE_BYTES])


def load_weights(
    checkpoint: Checkpoint,
    config: ModelConfig,
    *,
    format: str | None = None,
    cache_dir: Path,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Weights:
    """Map the packed weights, after packing them if no sound pack is in ``cache_dir``.

    ``format`` None keeps the published values; "q8" and "q4" narrow plain floating-point models (see plan.py).
    ``progress`` is called while packing with the bytes that are done and their total; never when mapping.
    """
    if threads is not None:
        kernels.set_threads(threads)
    binding = bind(checkpoint, config)
    plan = make_plan(binding, format)
    identity = _identity(checkpoint, config, plan)
    pack = open_pack(cache_dir, identity, plan)
    if pack is None:
        check_room(cache_dir, plan)
        with locked_writer(cache_dir, identity, plan) as writer:
            pack = open_pack(cache_dir, identity, plan)  # another process may have been faster
            if pack is None:
                writer.reserve()
                writer.publish(_pack_all(checkpoint, plan, writer, progress))
        remove_superseded(cache_dir, identity)
    pack = pack or open_pack(cache_dir, identity, plan)
    if pack is None:
        raise MalformedFile(f"the pack of {checkpoint.path} was damaged while it was being read back")
    return Weights(config, binding, plan, pack)


def describe(
    checkpoint: Checkpoint, config: ModelConfig, *, format: str | None = None, cache_dir: Path | None = None
) -> tuple[ReportLine, ...]:
    """What packing did to each field, or would do (then without measured errors). Packs nothing."""
    plan = make_plan(bind(checkpoint, config), format)
    stored = None if cache_dir is None else stored_report(cache_dir, _identity(checkpoint, config, plan))
    return stored or planned_report(plan)


def packed_bytes(checkpoint: Checkpoint, config: ModelConfig, *, format: str | None = None) -> int:
    """Bytes of the packed model: of disk in the cache, and of memory when all of it is resident."""
    return make_plan(bind(checkpoint, config), format).nbytes


def pack_path(checkpoint: Checkpoint, config: ModelConfig, *, format: str | None = None, cache_dir: Path) -> Path:
    """Where the pack of this checkpoint lies, whether or not it exists."""
    plan = make_plan(bind(checkpoint, config), format)
    return cache_dir / _identity(checkpoint, config, plan).file_name


def _identity(checkpoint: Checkpoint, config: ModelConfig, plan: Plan) -> PackIdentity:
    """The plan is part of the key, so a release that binds differently never maps an old pack."""
    plan_text = json.dumps(
        [
            (f.source.field, f.source.shape, f.tile_format, f.note, f.offset, f.source.pieces[0].tensor)
            for f in plan.fields
        ]
    )
    parts = (str(LAYOUT_VERSION), checkpoint.fingerprint(), plan.format or "published", config.model_type, plan_text)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return PackIdentity(key, str(checkpoint.path.absolute()), plan.format or "published")


def _view(field: PlannedField, data: Bytes) -> Matrix | Floats:
    mine = data[field.offset : field.offset + field.nbytes]
    if field.source.is_vector:
        return mine.view(np.float32)
    experts, rows, cols = field.source.shape
    return Matrix(field.tile_format, rows, cols, mine, experts)


# ---- packing ----


def _pack_all(checkpoint: Checkpoint, plan: Plan, writer: PackWriter, progress: Progress | None) -> dict[str, float]:
    """Fill the data; returns the relative RMS error of each field that became narrower."""
    published = Published(checkpoint)
    errors: dict[str, float] = {}
    for field in plan.fields:
        if field.source.is_vector:
            writer.write(field.offset, published.vector(field.source).view(np.uint8))
        else:
            packer = _FieldPacker(published, field, writer)
            packer.run()
            if field.narrow is not None:
                errors[field.source.field] = packer.relative_error
        if progress is not None:
            progress(field.offset + field.padded_bytes, plan.nbytes)
    return errors


class _FieldPacker:
    """Packs one matrix, expert by expert and chunk by chunk."""

    def __init__(self, published: Published, field: PlannedField, writer: PackWriter) -> None:
        self._published = published
        self._field = field
        self._writer = writer
        self._squares = 0.0
        self._squared_error = 0.0

    @property
    def relative_error(self) -> float:
        """Root of the summed squared error over the summed squares."""
        return math.sqrt(self._squared_error / self._squares) if self._squares else 0.0

    def run(self) -> None:
        field, source = self._field, self._field.source
        _, rows, cols = source.shape
        stride = kernels.packed_bytes(field.tile_format, rows, cols)
        step = _chunk_rows(source)
        for expert, piece in enumerate(source.pieces):
            for start in range(0, rows, step):
                tiles = self._tiles(piece, start, min(start + step, rows))
                at = kernels.packed_bytes(field.tile_format, start, cols) if start else 0
                self._writer.write(field.offset + expert * stride + at, tiles)

    def _tiles(self, piece: Rows, start: int, stop: int) -> Bytes:
        cols = self._field.source.shape[2]
        data, scales = self._blocks(piece, start, stop)
        return kernels.pack(self._field.tile_format, data, stop - start, cols, scales=scales)

    def _blocks(self, piece: Rows, start: int, stop: int) -> tuple[Bytes, Floats | None]:
        """Row-major blocks in the tile's format, and the scales where the format keeps them apart."""
        source, narrow = self._field.source, self._field.narrow
        if narrow is not None:
            return self._quantized(narrow, self._published.floats(source, piece, start, stop)), None
        if source.transpose:
            return self._published.transposed(source, piece), None
        if source.tile_format != source.format:
            return self._published.floats(source, piece, start, stop).reshape(-1).view(np.uint8), None
        data = self._published.rows(source, piece, start, stop)
        scales = None if source.fp8_block is None else self._published.tile_scales(source, piece, start, stop)
        return data, scales

    def _quantized(self, narrow: NarrowFormat, values: Floats) -> Bytes:
        data, error = kernels.quantize(narrow, values)
        squares = float(np.einsum("ij,ij->", values, values, dtype=np.float64))
        self._squares += squares
        self._squared_error += error * squares
        return data


def _chunk_rows(source: Source) -> int:
    """Rows packed at a time: whole tiles, whole permuted heads, and all of a transposed piece."""
    _, rows, cols = source.shape
    if source.transpose:
        return rows
    unit = CHUNK_ROWS
    if source.unpermute_heads:
        unit = math.lcm(unit, rows // source.unpermute_heads)
    return max(CHUNK_ELEMENTS // cols // unit, 1) * unit
