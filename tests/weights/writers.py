"""Writers of GGUF and safetensors files for tests: from plain Python values and NumPy arrays, no other package needed.

They write what they are told, also nonsense: attack tests start from a sound file and break one thing. Independent of
the readers on purpose (sizes of blocks are stated again here), so that the two cannot be wrong in the same way.

    write_gguf(path, {"general.architecture": "llama"}, {"norm.weight": np.ones(8, np.float32)})
    write_safetensors(path, {"a": array, "b": Raw("BF16", (2, 2), data)})
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

GGUF_TYPES = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34), "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210), "I8": (24, 1, 1), "I16": (25, 1, 2),
    "I32": (26, 1, 4), "I64": (27, 1, 8), "F64": (28, 1, 8), "BF16": (30, 1, 2), "MXFP4": (39, 32, 17),
}  # fmt: skip
"""id, values per block, bytes per block"""

NUMPY_NAMES = {
    "f4": "F32", "f2": "F16", "f8": "F64", "i1": "I8", "u1": "U8", "i2": "I16", "u2": "U16", "i4": "I32",
    "u4": "U32", "i8": "I64", "u8": "U64", "b1": "BOOL",
}  # fmt: skip

# Where a block's float16 scales lie: the scale that every value is multiplied by first, then the minimum's.
SCALE_OFFSETS = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
# The largest value that a block's integers reach, times its inner scale: scale / reach makes weights of size scale.
REACH = {
    "Q4_0": 8, "Q4_1": 16, "Q5_0": 16, "Q5_1": 32, "Q8_0": 128, "Q2_K": 45, "Q3_K": 128, "Q4_K": 945,
    "Q5_K": 1953, "Q6_K": 4096,
}  # fmt: skip


@dataclass(frozen=True)
class Raw:
    """A tensor of a format that NumPy has no type for: upper-case format, shape (slowest first), bytes."""

    format: str
    shape: tuple[int, ...]
    data: bytes


Tensors = Mapping[str, Array | Raw]


@dataclass(frozen=True)
class Typed:
    """A GGUF metadata value with its exact type: u8 i8 u16 i16 u32 i32 f32 bool str u64 i64 f64, or "array:<type>"."""

    type: str
    value: Any


# --- block data


def bf16(values: Array) -> Raw:
    """float32 values cut to bfloat16 (values that bfloat16 holds are kept exactly)."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16
    return Raw("BF16", values.shape, rounded.astype("<u2").tobytes())


def random_blocks(format: str, shape: Sequence[int], rng: np.random.Generator, *, scale: float = 0.1) -> Raw:
    """Random sound blocks of a GGUF format, with weights of about ``scale``."""
    _, elements, block_bytes = GGUF_TYPES[format]
    count = int(np.prod(shape)) // elements
    if elements == 1:
        return _random_plain(format, shape, rng, scale)
    blocks = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    if format == "MXFP4":
        blocks[:, 0] = 127 + round(np.log2(scale)) - rng.integers(1, 4, count)
    for index, at in enumerate(SCALE_OFFSETS.get(format, ())):
        size = (
            scale / REACH[format] * rng.uniform(0.5, 1.5, count) * (-8 if index and format in ("Q4_1", "Q5_1") else 1)
        )
        blocks[:, at : at + 2] = size.astype("<f2").view(np.uint8).reshape(-1, 2)
    return Raw(format, tuple(shape), blocks.tobytes())


def _random_plain(format: str, shape: Sequence[int], rng: np.random.Generator, scale: float) -> Raw:
    values = rng.normal(0, scale, tuple(shape)).astype(np.float32)
    if format == "BF16":
        return bf16(values)
    return Raw(format, tuple(shape), values.astype({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[format]).tobytes())


def _as_raw(tensor: Array | Raw) -> Raw:
    if isinstance(tensor, Raw):
        return tensor
    tensor = np.ascontiguousarray(tensor)
    return Raw(NUMPY_NAMES[tensor.dtype.str[1:]], tensor.shape, tensor.tobytes())


# --- GGUF

_SCALARS = {
    "u8": (0, "<B"), "i8": (1, "<b"), "u16": (2, "<H"), "i16": (3, "<h"), "u32": (4, "<I"), "i32": (5, "<i"),
    "f32": (6, "<f"), "bool": (7, "<?"), "u64": (10, "<Q"), "i64": (11, "<q"), "f64": (12, "<d"),
}  # fmt: skip


def gguf_string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def gguf_value(value: Any) -> bytes:
    """Type id and bytes of a metadata value."""
    typed = value if isinstance(value, Typed) else _typed(value)
    if typed.type.startswith("array:"):
        inner = typed.type.removeprefix("array:")
        items = b"".join(_payload(inner, item) for item in typed.value)
        return struct.pack("<IIQ", 9, _type_id(inner), len(typed.value)) + items
    return struct.pack("<I", _type_id(typed.type)) + _payload(typed.type, typed.value)


def _typed(value: Any) -> Typed:
    """The type that converters choose."""
    if isinstance(value, list | tuple | np.ndarray):
        items = list(value)
        return Typed(f"array:{_typed(items[0]).type if items else 'i32'}", items)
    if isinstance(value, bool | np.bool_):
        return Typed("bool", value)
    if isinstance(value, int | np.integer):
        return Typed("u32" if 0 <= value < 1 << 32 else "i64", value)
    return Typed("f32", value) if isinstance(value, float | np.floating) else Typed("str", value)


def _type_id(name: str) -> int:
    return 8 if name == "str" else _SCALARS[name][0]


def _payload(name: str, value: Any) -> bytes:
    return gguf_string(value) if name == "str" else struct.pack(_SCALARS[name][1], value)


def gguf_header(metadata: Mapping[str, Any], infos: Sequence[bytes], *, version: int = 3) -> bytes:
    """Magic, counts, metadata and ready-made tensor entries."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(infos), len(metadata))
    return head + b"".join(gguf_string(key) + gguf_value(value) for key, value in metadata.items()) + b"".join(infos)


def gguf_tensor_info(name: str, dims: Sequence[int], type_id: int, offset: int) -> bytes:
    """One tensor's entry; ``dims`` fastest first."""
    return gguf_string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_id, offset)


def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Tensors, *, alignment: int = 32, version: int = 3
) -> Path:
    """A GGUF file."""
    infos, blobs, offset = [], [], 0
    for name, tensor in tensors.items():
        raw = _as_raw(tensor)
        infos.append(gguf_tensor_info(name, raw.shape[::-1], GGUF_TYPES[raw.format][0], offset))
        blobs.append(raw.data + bytes(-len(raw.data) % alignment))
        offset += len(blobs[-1])
    if alignment != 32:
        metadata = {**metadata, "general.alignment": Typed("u32", alignment)}
    head = gguf_header(metadata, infos, version=version)
    path.write_bytes(head + bytes(-len(head) % alignment) + b"".join(blobs))
    return path


def write_gguf_split(folder: Path, name: str, metadata: Mapping[str, Any], tensors: Tensors, parts: int) -> list[Path]:
    """The same in ``parts`` files, as published splits are: all metadata in the first."""
    names = list(tensors)
    paths = []
    for part in range(parts):
        keys = {
            **(metadata if part == 0 else {}),
            "split.no": Typed("u16", part),
            "split.count": Typed("u16", parts),
            "split.tensors.count": Typed("i32", len(names)),
        }
        path = folder / f"{name}-{part + 1:05d}-of-{parts:05d}.gguf"
        paths.append(write_gguf(path, keys, {n: tensors[n] for n in names[part::parts]}))
    return paths


# --- safetensors


def safetensors_bytes(header: Mapping[str, Any] | bytes, data: bytes) -> bytes:
    """A file from a ready-made header."""
    text = header if isinstance(header, bytes) else json.dumps(header, ensure_ascii=False).encode()
    return struct.pack("<Q", len(text)) + text + data


def write_safetensors(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    blobs, at = [], 0
    for name, tensor in tensors.items():
        raw = _as_raw(tensor)
        header[name] = {"dtype": raw.format, "shape": list(raw.shape), "data_offsets": [at, at + len(raw.data)]}
        blobs.append(raw.data)
        at += len(raw.data)
    path.write_bytes(safetensors_bytes(header, b"".join(blobs)))
    return path


def write_safetensors_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Tensors,
    *,
    shards: int = 1,
    side_files: Mapping[str, Any] | None = None,
) -> Path:
    """A Hugging Face folder: config.json, one file or shards with their index, and JSON or text side files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"config.json": dict(config), **(side_files or {})}.items():
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8")
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
        return folder
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[shard::shards]
        write_safetensors(folder / file, {name: tensors[name] for name in mine}, {"format": "pt"})
        weight_map.update(dict.fromkeys(mine, file))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
