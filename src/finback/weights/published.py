"""Published rows as the packer wants them: in the bound order, finite, as bytes or as float32.

Reads are bounded (the caller names the rows), and every number is looked at once on its way in: one infinite scale
would turn every answer into NaN, and the place to say which tensor has it is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from finback.errors import MalformedFile
from finback.weights.bind import FP8_TILE_COLUMNS, HALVES, Rows, Source, scale_name
from finback.weights.formats import FORMATS, dequantize

if TYPE_CHECKING:
    from finback.weights.checkpoint import Checkpoint

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# Where each block keeps its float16 scales (and minima), in bytes.
_HALF_SCALES: Mapping[str, tuple[int, ...]] = {
    "q4_0": (0,),
    "q4_1": (0, 2),
    "q5_0": (0,),
    "q5_1": (0, 2),
    "q8_0": (0,),
    "q2_k": (80, 82),
    "q3_k": (108,),
    "q4_k": (0, 2),
    "q5_k": (0, 2),
    "q6_k": (208,),
}
_E4M3_LARGEST = np.float32(448)
_SLICE = 1 << 17  # elements looked at together
_MXFP4_LARGEST_EXPONENT = 252  # 12 * 2**(252 - 128) is finite, and one more is not


class Published:
    """Rows of the sources of one checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def vector(self, source: Source) -> Floats:
        """A one-dimensional source as float32."""
        tensor = source.pieces[0].tensor
        data = self._read(source.format, tensor, 0, 1)
        values = dequantize(source.format, data, source.shape)
        return np.ascontiguousarray(_unpermuted(values, source.unpermute_heads, source.shape[0]))

    def rows(self, source: Source, piece: Rows, start: int, stop: int) -> Bytes:
        """Published bytes of rows [start, stop) of a piece; of whole heads, where heads are permuted."""
        data = self._read(source.format, piece.tensor, piece.start + start, piece.start + stop)
        if not source.unpermute_heads:
            return data
        heads = source.unpermute_heads * (stop - start) // source.shape[1]
        ordered = _unpermuted(data.reshape(stop - start, -1), heads, stop - start)
        return np.ascontiguousarray(ordered).reshape(-1)

    def floats(self, source: Source, piece: Rows, start: int, stop: int) -> Floats:
        """The values of those rows: float32 [rows, columns], block scales applied."""
        data = self.rows(source, piece, start, stop)
        values = dequantize(source.format, data, (stop - start, _columns(source)))
        if source.fp8_block is not None:
            scales = self._scales(source, piece, start, stop)
            values *= np.repeat(scales, source.fp8_block[1], axis=1)[:, : values.shape[1]]
        return values

    def tile_scales(self, source: Source, piece: Rows, start: int, stop: int) -> Floats:
        """The multipliers of an FP8 source as its tiles want them: [rows, blocks of FP8_TILE_COLUMNS columns]."""
        assert source.fp8_block is not None
        first_columns = np.arange(0, _columns(source), FP8_TILE_COLUMNS)
        scales = self._scales(source, piece, start, stop)
        return np.ascontiguousarray(scales[:, first_columns // source.fp8_block[1]])

    def transposed(self, source: Source, piece: Rows) -> Bytes:
        """A whole piece with rows and columns exchanged: bytes of the published half, or of float32."""
        rows = piece.stop - piece.start
        if source.format in HALVES:
            values: npt.NDArray[np.generic] = self.rows(source, piece, 0, rows).view(np.uint16).reshape(rows, -1)
        else:
            values = self.floats(source, piece, 0, rows)
        return np.ascontiguousarray(values.T).reshape(-1).view(np.uint8)

    def _scales(self, source: Source, piece: Rows, start: int, stop: int) -> Floats:
        """One row of published scales per row of weights."""
        assert source.fp8_block is not None
        name = scale_name(piece.tensor)
        info = self._checkpoint.tensors[name]
        shape = info.shape if len(info.shape) == 2 else (1, 1)
        # Some exports give the power-of-two scales as plain bytes.
        format = "f8_e8m0" if info.format == "u8" else info.format
        values = dequantize(format, self._checkpoint.read(name), shape)
        with np.errstate(over="ignore", invalid="ignore"):
            sound = np.isfinite(values * _E4M3_LARGEST).all()
        if not sound:
            raise _not_finite(name)
        return values[np.arange(piece.start + start, piece.start + stop) // source.fp8_block[0]]

    def _read(self, format: str, tensor: str, start: int, stop: int) -> Bytes:
        data = self._checkpoint.read(tensor, slice(start, stop))
        if not all_finite(format, data):
            raise _not_finite(tensor)
        return data


def _columns(source: Source) -> int:
    return source.shape[1] if source.transpose else source.shape[2]


def _unpermuted(values: npt.NDArray[np.generic], heads: int, rows: int) -> npt.NDArray[np.generic]:
    """Undo GGUF's order of a llama head's rows: (pair, half) becomes (half, pair)."""
    if not heads:
        return values
    rest = values.shape[1:]
    return values.reshape(heads, rows // heads // 2, 2, *rest).swapaxes(1, 2).reshape(rows, *rest)


def _not_finite(tensor: str) -> MalformedFile:
    return MalformedFile(
        f"tensor {tensor} holds a value or a scale that is not finite", hint="the file is damaged: pull the model again"
    )


def all_finite(format: str, data: Bytes) -> bool:
    """Whether these published bytes decode to finite numbers only; looks at scales where blocks have them."""
    if format == "f32":
        return _below(data.view("<u4"), 0x7FFFFFFF, 0x7F800000)
    if format == "f16":
        return _below(data.view("<u2"), 0x7FFF, 0x7C00)
    if format == "bf16":
        return _below(data.view("<u2"), 0x7FFF, 0x7F80)
    if format == "f8_e4m3":
        return _below(data, 0x7F, 0x7F)
    blocks = data.reshape(-1, FORMATS[format].block_bytes)
    if format == "mxfp4":
        return _below(np.ascontiguousarray(blocks[:, 0]), 0xFF, _MXFP4_LARGEST_EXPONENT + 1)
    return all(_below(_halves(blocks, at), 0x7FFF, 0x7C00) for at in _HALF_SCALES[format])


def _below(bits: npt.NDArray[np.unsignedinteger], magnitude: int, limit: int) -> bool:
    """Whether all magnitudes, as integers, are below that of infinity; in slices that stay in the cache."""
    mask = bits.dtype.type(magnitude)
    return all(int((bits[start : start + _SLICE] & mask).max()) < limit for start in range(0, len(bits), _SLICE))


def _halves(blocks: Bytes, at: int) -> npt.NDArray[np.uint16]:
    return blocks[:, at].astype(np.uint16) | blocks[:, at + 1].astype(np.uint16) << np.uint16(8)
