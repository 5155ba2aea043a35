"""Reader of safetensors headers, of single files and of folders whose shards an index lists.

The format is eight bytes of length, that many bytes of JSON, and the data. As its specification asks, the tensors must
cover the data exactly: no overlap, no hole, nothing behind the end.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from finback.errors import MalformedFile, MissingTensor, UnsupportedModel
from finback.weights.formats import BY_SAFETENSORS_DTYPE
from finback.weights.source import (
    AGAIN_HINT,
    SourceFile,
    TensorInfo,
    checked_name,
    look_at,
    member,
    parse_json,
    quoted,
    read_small,
)

MAX_HEADER_BYTES = 32 << 20  # four times that of a file with all 91,000 tensors of DeepSeek-V3
MAX_INDEX_BYTES = 64 << 20
MAX_DIMENSIONS = 8
MAX_SHARDS = 4096
INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What one file says about itself."""

    source: SourceFile
    metadata: Mapping[str, str]
    tensors: tuple[TensorInfo, ...]
    digest: bytes


def read_header(source: SourceFile) -> SafetensorsHeader:
    """Parse and check the header of one file."""
    raw = _header_bytes(source)
    entries = parse_json(raw, f"the header of {source.path}")
    metadata = _metadata(entries.pop("__metadata__", {}), source.path)
    data_start = 8 + len(raw)
    tensors = tuple(_place(name, entry, data_start, source) for name, entry in entries.items())
    _check_cover(tensors, data_start, source)
    return SafetensorsHeader(source, metadata, tensors, hashlib.sha256(raw).digest())


def read_folder(folder: Path) -> tuple[SafetensorsHeader, ...]:
    """The headers of a folder's shards: those that the index lists, else the only ``.safetensors`` file."""
    if (folder / INDEX_NAME).exists():
        return _read_indexed(folder)
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".safetensors"))
    if "model.safetensors" in names:
        names = ["model.safetensors"]
    if len(names) != 1:
        raise UnsupportedModel(
            f"{folder} holds {len(names)} .safetensors files and no {INDEX_NAME} to tell them apart",
            hint="pull the model again, with its index",
        )
    return (read_header(look_at(member(folder, names[0]))),)


def _header_bytes(source: SourceFile) -> bytes:
    if source.size < 8:
        raise MalformedFile(f"{source.path} has {source.size} bytes, too few for a safetensors file", hint=AGAIN_HINT)
    length = int.from_bytes(source.read(0, 8), "little")
    if length > min(MAX_HEADER_BYTES, source.size - 8):
        raise MalformedFile(
            f"{source.path} claims a header of {length} bytes in a file of {source.size}", hint=AGAIN_HINT
        )
    raw = source.read(8, length)
    if not raw.startswith(b"{"):
        raise MalformedFile(f"{source.path} is not a safetensors file: its header is not a JSON object")
    return raw


def _metadata(value: Any, path: Path) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise MalformedFile(f"{path}: __metadata__ must map names to strings")
    return MappingProxyType(value)


def _place(name: str, entry: Any, data_start: int, source: SourceFile) -> TensorInfo:
    """Check an entry against the file and say where its bytes are."""
    label = f"{source.path}: tensor {quoted(name)}"
    checked_name(name, "tensor", source.path)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise MalformedFile(f"{label} must have exactly dtype, shape and data_offsets")
    format = BY_SAFETENSORS_DTYPE.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if format is None:
        raise UnsupportedModel(f"{label} has the type {quoted(str(entry['dtype']))}, which Finback does not run")
    shape = _whole_numbers(entry["shape"], 1, MAX_DIMENSIONS, label)
    offsets = _whole_numbers(entry["data_offsets"], 0, 2, label)
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * format.block_bytes:
        raise MalformedFile(f"{label} of shape {shape} and type {entry['dtype']} does not fill bytes {offsets}")
    if data_start + offsets[1] > source.size:
        raise MalformedFile(f"{label} ends behind the end of the file", hint=AGAIN_HINT)
    return TensorInfo(name, format.name, shape, source.path, data_start + offsets[0], offsets[1] - offsets[0])


def _whole_numbers(value: Any, smallest: int, at_most: int, label: str) -> tuple[int, ...]:
    sound = isinstance(value, list) and len(value) <= at_most
    if not sound or not all(type(number) is int and smallest <= number < 1 << 63 for number in value):
        raise MalformedFile(
            f"{label}: shape and data_offsets must be short lists of whole numbers, none negative or empty"
        )
    return tuple(value)


def _check_cover(tensors: tuple[TensorInfo, ...], data_start: int, source: SourceFile) -> None:
    """The tensors follow each other without overlap or hole, to the end of the file."""
    at = data_start
    for tensor in sorted(tensors, key=lambda t: t.offset):
        if tensor.offset != at:
            trouble = "overlaps the one before" if tensor.offset < at else "leaves a hole before it"
            raise MalformedFile(f"{source.path}: tensor {quoted(tensor.name)} {trouble}")
        at += tensor.nbytes
    if at != source.size:
        raise MalformedFile(f"{source.path} has {source.size} bytes, but its tensors end at {at}", hint=AGAIN_HINT)


def _read_indexed(folder: Path) -> tuple[SafetensorsHeader, ...]:
    shard_of = _read_index(folder)
    shards = sorted(set(shard_of.values()))
    if len(shards) > MAX_SHARDS:
        raise MalformedFile(f"{folder / INDEX_NAME} names {len(shards)} files; at most {MAX_SHARDS} are accepted")
    headers = tuple(_read_shard(folder, shard, shard_of) for shard in shards)
    found = {tensor.name for header in headers for tensor in header.tensors}
    missing = next((name for name in shard_of if name not in found), None)
    if missing is not None:
        raise MissingTensor(
            f"{folder / INDEX_NAME} lists tensor {quoted(missing)}, which {shard_of[missing]} does not hold"
        )
    return headers


def _read_index(folder: Path) -> Mapping[str, str]:
    path = member(folder, INDEX_NAME)
    index = parse_json(read_small(path, MAX_INDEX_BYTES), str(path))
    shard_of = index.get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(s, str) for s in shard_of.values()):
        raise MalformedFile(f"{path}: weight_map must map tensors to files")
    return shard_of


def _read_shard(folder: Path, shard: str, shard_of: Mapping[str, str]) -> SafetensorsHeader:
    """One shard, less the tensors that the index takes from elsewhere or leaves out."""
    path = member(folder, shard)
    if not path.exists():
        raise MalformedFile(f"{folder / shard} is missing, but the index lists it", hint="pull the model again")
    header = read_header(look_at(path))
    tensors = tuple(tensor for tensor in header.tensors if shard_of.get(tensor.name) == shard)
    return SafetensorsHeader(header.source, header.metadata, tensors, header.digest)
