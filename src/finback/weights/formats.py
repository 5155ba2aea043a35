"""The published block formats: how many elements share a block, how many bytes it takes, what the bytes mean, and how
far a kernel's product may be from the exact one.

A format is named in lower case as the kernels name it (``q4_k``, ``bf16``). Three things hang on this one table: the
readers (sizes of tensors), :func:`dequantize` (the meaning of the bytes, bit for bit that of the ``gguf`` package) and
:func:`product_limit` (the tolerance of a matrix product). Formats without ``activation`` are side tensors: they can be
read, and no kernel multiplies by them.

Tolerance of a product. ``exact`` is the product of the dequantised weights with the float32 activations, computed in
float64; |w| and |x| are the Euclidean norms of a row of weights and of a token. Where ``activation`` is "int8", kernels
round activations to int8 per group of 32: the step of a group is ``max|x| / 127``, and each value is off by at most
half a step. Everything else is the rounding of float32 sums, ``additions`` of them per output. Three statements follow:

1.  ``|kernel - exact| <= tolerance * |w| * |x|``, the format's number in the table. For the integer formats no input
    can break it; for the float formats it supposes that a sum's rounding errors do not all have the same sign.
2.  :func:`product_ceiling` drops that supposition: a bound that no input can break, for every format.
3.  :func:`product_limit` is what tests use, some hundred times sharper for the integer formats. Rounding errors of
    ordinary activations are independent of each other and of the weights, so they add up to a standard deviation of
    ``noise = sqrt(sum over groups of (step**2 / 12 * sum over the group of w**2))``, and the limit is
    ``SIGMAS * noise + 2**-23 * sqrt(additions) * sum|w * x|``. Measured: at most 0.75 of it, over all formats, row
    lengths up to 18432, and activations that are normal, heavy-tailed, positive, with outliers or gated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from finback.errors import MalformedFile, UnsupportedModel

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

GROUP = 32  # activations that share one int8 scale
SIGMAS = 6.5  # one output in ten thousand million lies further out
SMALLEST_ACTIVATION = 1e-30  # a group whose largest value is below counts as zero
HALF_STEPS = math.sqrt(GROUP) / 254  # half a step for every value of a group, relative to the group's norm
ROUNDING = 2.0**-24  # of one float32 operation

INT8_TOLERANCE = 0.0224  # HALF_STEPS, and room for the sums
FLOAT_TOLERANCE = 2e-5  # 2 * ROUNDING * sqrt(28,000 additions)


@dataclass(frozen=True, slots=True)
class Format:
    """One published format. Invariant: ``block_elements`` consecutive values of a row take ``block_bytes`` bytes."""

    name: str
    block_elements: int
    block_bytes: int
    gguf_id: int | None = None
    safetensors_dtype: str | None = None
    activation: str | None = None  # what the kernels multiply it with: "int8" groups, "f32", or None: no kernel
    tolerance: float = 0.0  # of a product, relative to |w| * |x|; see above

    def row_bytes(self, elements: int) -> int:
        """Bytes of a row of ``elements`` values; a row never ends inside a block."""
        if elements % self.block_elements:
            raise MalformedFile(
                f"a row of {elements} values is not whole blocks of {self.name}, {self.block_elements} each"
            )
        return elements // self.block_elements * self.block_bytes

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of this shape (slowest dimension first; () is a single value)."""
        if not shape:
            return self.row_bytes(1)
        return math.prod(shape[:-1]) * self.row_bytes(shape[-1])

    def additions(self, cols: int) -> int:
        """Float32 additions in a product's output: inside a group, integers are summed exactly."""
        return 2 * math.ceil(cols / GROUP) if self.activation == "int8" else cols


_TABLE = (
    Format("f32", 1, 4, 0, "F32", "f32", FLOAT_TOLERANCE),
    Format("f16", 1, 2, 1, "F16", "f32", FLOAT_TOLERANCE),
    Format("bf16", 1, 2, 30, "BF16", "f32", FLOAT_TOLERANCE),
    Format("f8_e4m3", 1, 1, None, "F8_E4M3", "f32", FLOAT_TOLERANCE),
    Format("q4_0", 32, 18, 2, None, "int8", INT8_TOLERANCE),
    Format("q4_1", 32, 20, 3, None, "int8", INT8_TOLERANCE),
    Format("q5_0", 32, 22, 6, None, "int8", INT8_TOLERANCE),
    Format("q5_1", 32, 24, 7, None, "int8", INT8_TOLERANCE),
    Format("q8_0", 32, 34, 8, None, "int8", INT8_TOLERANCE),
    Format("q2_k", 256, 84, 10, None, "int8", INT8_TOLERANCE),
    Format("q3_k", 256, 110, 11, None, "int8", INT8_TOLERANCE),
    Format("q4_k", 256, 144, 12, None, "int8", INT8_TOLERANCE),
    Format("q5_k", 256, 176, 13, None, "int8", INT8_TOLERANCE),
    Format("q6_k", 256, 210, 14, None, "int8", INT8_TOLERANCE),
    Format("mxfp4", 32, 17, 39, None, "int8", INT8_TOLERANCE),
    Format("f64", 1, 8, 28, "F64"),
    Format("f8_e8m0", 1, 1, None, "F8_E8M0"),
    Format("bool", 1, 1, None, "BOOL"),
    Format("i8", 1, 1, 24, "I8"),
    Format("u8", 1, 1, None, "U8"),
    Format("i16", 1, 2, 25, "I16"),
    Format("u16", 1, 2, None, "U16"),
    Format("i32", 1, 4, 26, "I32"),
    Format("u32", 1, 4, None, "U32"),
    Format("i64", 1, 8, 27, "I64"),
    Format("u64", 1, 8, None, "U64"),
)

FORMATS: Mapping[str, Format] = MappingProxyType({f.name: f for f in _TABLE})
MATRIX_FORMATS: tuple[str, ...] = tuple(f.name for f in _TABLE if f.activation is not None)
BY_GGUF_ID: Mapping[int, Format] = MappingProxyType({f.gguf_id: f for f in _TABLE if f.gguf_id is not None})
BY_SAFETENSORS_DTYPE: Mapping[str, Format] = MappingProxyType(
    {f.safetensors_dtype: f for f in _TABLE if f.safetensors_dtype is not None}
)

# Formats that exist and that Finback does not run: named in the refusal, so that nobody suspects the file.
OTHER_GGUF_TYPES: Mapping[int, str] = MappingProxyType(
    {
        9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
        21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4", 41: "Q1_0",
    }
)  # fmt: skip


def dequantize(format: str, data: npt.NDArray[Any], shape: Sequence[int]) -> Floats:
    """The float32 values of a tensor: ``data`` are its published bytes (uint8), rows in order.

    Bit-equal to ``gguf.quants.dequantize``. ``f8_e4m3`` and ``f8_e8m0`` give the element alone: block scales are the
    caller's. A scale that is not finite gives values that are not finite; whoever binds the weights refuses those.
    """
    info = FORMATS.get(format)
    decode = _DECODERS.get(format)
    if info is None or decode is None:
        raise UnsupportedModel(f"values of format {format!r} cannot be read as numbers")
    raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    if raw.nbytes != info.nbytes(shape):
        raise MalformedFile(
            f"a {format} tensor of shape {tuple(shape)} takes {info.nbytes(shape)} bytes, not {raw.nbytes}"
        )
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        return decode(raw.reshape(-1, info.block_bytes)).reshape(tuple(shape))


def product_limit(format: str, weights: npt.NDArray[Any], x: npt.NDArray[Any]) -> Doubles:
    """The sharp bound, statement 3 above: [n, rows] for dequantised weights [rows, cols] and x [n, cols]."""
    info, w, x64 = _matrix_format(format), weights.astype(np.float64), x.astype(np.float64)
    limit = 2 * ROUNDING * math.sqrt(info.additions(w.shape[1])) * (np.abs(x64) @ np.abs(w).T)
    if info.activation == "int8":
        step = np.max(np.abs(_groups(x64)), axis=-1) / 127
        noise = np.sqrt(_by_group(x64, step**2 / 12) @ (w * w).T)
        limit += SIGMAS * noise + SMALLEST_ACTIVATION * np.abs(w).sum(axis=1)
    return np.asarray(limit)


def product_ceiling(format: str, weights: npt.NDArray[Any], x: npt.NDArray[Any]) -> Doubles:
    """The bound that no input can break, statement 2 above, in the same shape."""
    info, w, x64 = _matrix_format(format), weights.astype(np.float64), x.astype(np.float64)
    ceiling = 1.01 * ROUNDING * (2 + info.additions(w.shape[1])) * (np.abs(x64) @ np.abs(w).T)
    if info.activation == "int8":
        norms = np.linalg.norm(x64, axis=1)[:, None] * np.linalg.norm(w, axis=1)
        ceiling += HALF_STEPS * norms + SMALLEST_ACTIVATION * np.abs(w).sum(axis=1)
    return np.asarray(ceiling)


def _matrix_format(format: str) -> Format:
    info = FORMATS.get(format)
    if info is None or info.activation is None:
        raise UnsupportedModel(f"no kernel multiplies by format {format!r}", hint=f"known: {', '.join(MATRIX_FORMATS)}")
    return info


def _groups(x: Doubles) -> Doubles:
    """[n, cols] -> [n, groups, GROUP], the last group padded with zeros."""
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % GROUP)))
    return padded.reshape(x.shape[0], -1, GROUP)


def _by_group(x: Doubles, per_group: Doubles) -> Doubles:
    """[n, groups] spread over the columns of x."""
    return np.repeat(per_group, GROUP, axis=1)[:, : x.shape[1]]


# --- decoders: [blocks, block_bytes] uint8 -> [blocks, block_elements] float32


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 that starts at byte ``at`` of every block: [blocks, 1] float32."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _planes(packed: Bytes, bits: int, run: int) -> Bytes:
    """Unpack fields of ``bits`` bits: each run of ``run`` bytes gives its lowest fields first, then the next higher."""
    blocks, length = packed.shape
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = packed.reshape(blocks, length // run, 1, run) >> shifts
    return (fields & np.uint8((1 << bits) - 1)).reshape(blocks, -1)


def _fifth_bits(blocks: Bytes, at: int) -> Bytes:
    """Bit j of the 32-bit word at byte ``at``, as 0 or 16: [blocks, 32]."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << np.uint8(4)


def _signed(values: Bytes, offset: int) -> Floats:
    return values.astype(np.float32) - np.float32(offset)


def _q4_0(b: Bytes) -> Floats:
    return _half(b, 0) * _signed(_planes(b[:, 2:], 4, 16), 8)


def _q4_1(b: Bytes) -> Floats:
    return _half(b, 0) * _planes(b[:, 4:], 4, 16).astype(np.float32) + _half(b, 2)


def _q5_0(b: Bytes) -> Floats:
    return _half(b, 0) * _signed(_planes(b[:, 6:], 4, 16) | _fifth_bits(b, 2), 16)


def _q5_1(b: Bytes) -> Floats:
    return _half(b, 0) * (_planes(b[:, 8:], 4, 16) | _fifth_bits(b, 4)).astype(np.float32) + _half(b, 2)


def _q8_0(b: Bytes) -> Floats:
    return _half(b, 0) * b[:, 2:].view(np.int8).astype(np.float32)


def _scaled(scale: Floats, values: Floats, minimum: Floats | None = None) -> Floats:
    """[blocks, sub] scales over [blocks, sub * width] values, less a minimum per sub-block."""
    blocks, subs = scale.shape
    parts = scale[:, :, None] * values.reshape(blocks, subs, -1)
    if minimum is not None:
        parts = parts - minimum[:, :, None]
    return parts.reshape(blocks, -1)


def _q2_k(b: Bytes) -> Floats:
    scale = _half(b, 80) * (b[:, :16] & 15).astype(np.float32)
    minimum = _half(b, 82) * (b[:, :16] >> 4).astype(np.float32)
    return _scaled(scale, _planes(b[:, 16:80], 2, 32).astype(np.float32), minimum)


def _q3_k(b: Bytes) -> Floats:
    """The high bit is stored inverted: where it is clear, 4 is taken off. Scales are 6 bits, less 32."""
    low = _planes(b[:, 96:104], 4, 8)
    high = _planes(b[:, 104:108], 2, 4)
    scale = _half(b, 108) * _signed(low | high << np.uint8(4), 32)
    high_bit = _planes(b[:, :32], 1, 32) << np.uint8(2)
    return _scaled(scale, _signed(_planes(b[:, 32:96], 2, 32) | high_bit, 4))


def _six_bit_pairs(packed: Bytes) -> tuple[Floats, Floats]:
    """The 12 bytes of a K-block's scales: 8 scales and 8 minima of 6 bits each ([blocks, 8] twice).

    Bytes 0-3 and 4-7 hold the first four of each in their low 6 bits and, on top, the high 2 bits of the last four;
    bytes 8-11 hold the low 4 bits of those: scales in the low nibble, minima in the high one.
    """
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6) << np.uint8(4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6) << np.uint8(4)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _q4_k(b: Bytes) -> Floats:
    scales, minima = _six_bit_pairs(b[:, 4:16])
    values = _planes(b[:, 16:], 4, 32).astype(np.float32)
    return _scaled(_half(b, 0) * scales, values, _half(b, 2) * minima)


def _q5_k(b: Bytes) -> Floats:
    scales, minima = _six_bit_pairs(b[:, 4:16])
    values = _planes(b[:, 48:], 4, 32) | _planes(b[:, 16:48], 1, 32) << np.uint8(4)
    return _scaled(_half(b, 0) * scales, values.astype(np.float32), _half(b, 2) * minima)


def _q6_k(b: Bytes) -> Floats:
    scale = _half(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32)
    values = _planes(b[:, :128], 4, 64) | _planes(b[:, 128:192], 2, 32) << np.uint8(4)
    return _scaled(scale, _signed(values, 32))


# e2m1 values doubled, so that they are whole; the scale is halved instead.
E2M1_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def _mxfp4(b: Bytes) -> Floats:
    values = np.array(E2M1_DOUBLED, np.float32)[_planes(b[:, 1:], 4, 16)]
    exponent = b[:, :1].astype(np.int32) - 128
    return np.ldexp(np.float32(1), exponent).astype(np.float32) * values


def _e4m3_values() -> Floats:
    """All 256 values of float8 e4m3 ("fn": no infinities, 0x7f and 0xff are NaN)."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    magnitude = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    magnitude[code & 127 == 127] = np.nan
    return np.copysign(magnitude, np.where(code & 128, -1.0, 1.0)).astype(np.float32)


def _f8_e4m3(b: Bytes) -> Floats:
    return _e4m3_values()[b]


def _f8_e8m0(b: Bytes) -> Floats:
    """Powers of two from 2**-127; 255 is NaN."""
    powers = np.ldexp(1.0, np.arange(256) - 127)
    powers[255] = np.nan
    return powers.astype(np.float32)[b]


def _bf16(b: Bytes) -> Floats:
    return (b.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def _plain(dtype: str) -> Callable[[Bytes], Floats]:
    return lambda b: b.view(dtype).astype(np.float32)


_DECODERS: Mapping[str, Callable[[Bytes], Floats]] = MappingProxyType(
    {
        "f32": _plain("<f4"), "f16": _plain("<f2"), "bf16": _bf16, "f64": _plain("<f8"),
        "f8_e4m3": _f8_e4m3, "f8_e8m0": _f8_e8m0,
        "q4_0": _q4_0, "q4_1": _q4_1, "q5_0": _q5_0, "q5_1": _q5_1, "q8_0": _q8_0,
        "q2_k": _q2_k, "q3_k": _q3_k, "q4_k": _q4_k, "q5_k": _q5_k, "q6_k": _q6_k, "mxfp4": _mxfp4,
        "i8": _plain("i1"), "u8": _plain("u1"), "i16": _plain("<i2"), "u16": _plain("<u2"),
        "i32": _plain("<i4"), "u32": _plain("<u4"), "i64": _plain("<i8"), "u64": _plain("<u8"),
    }
)  # fmt: skip
