"""Reader of GGUF headers (versions 2 and 3, little endian), of single files and of published splits.

The header is parsed in one pass over a buffer that grows as needed, so a vocabulary of 150,000 entries costs a fraction
of a second and the weights are never touched. Every count is compared with the bytes that are left before it is used.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from finback.errors import MalformedFile, UnsupportedModel
from finback.weights.formats import BY_GGUF_ID, OTHER_GGUF_TYPES, Format
from finback.weights.source import (
    AGAIN_HINT,
    SourceFile,
    TensorInfo,
    check_apart,
    checked_name,
    fill,
    look_at,
    member,
    quoted,
)

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 1 << 26
MAX_STRINGS = 1 << 21  # in all arrays together
MAX_NUMBERS = 1 << 22  # likewise
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 20
MAX_SPLITS = 1024
DEFAULT_ALIGNMENT = 32
FIRST_READ_BYTES = 1 << 20
SMALLEST_KEY_BYTES = 8 + 1 + 4 + 1  # length, one character, type, value
SMALLEST_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8  # length, one character, dimensions, one size, type, offset

_BOOL, _STRING, _ARRAY = 7, 8, 9
_LENGTH = struct.Struct("<Q")
_SCALARS: Mapping[int, np.dtype[Any]] = MappingProxyType(
    {
        kind: np.dtype(code)
        for kind, code in enumerate(("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "u1", "", "", "<u8", "<i8", "<f8"))
        if code
    }
)
_SPLIT_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What one file says about itself. Values of the metadata are plain Python: int, float, bool, str, list."""

    source: SourceFile
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    digest: bytes


def read_header(source: SourceFile) -> GgufHeader:
    """Parse and check the header of one file."""
    with source.opened() as descriptor:
        cursor = _Cursor(source, descriptor)
        _check_magic(cursor)
        tensor_count = cursor.count("tensors", MAX_TENSORS, SMALLEST_TENSOR_BYTES)
        key_count = cursor.count("metadata keys", MAX_KEYS, SMALLEST_KEY_BYTES)
        metadata = _read_metadata(cursor, key_count)
        alignment = _alignment(metadata, source.path)
        entries = [_read_tensor(cursor) for _ in range(tensor_count)]
    data_start = -(-cursor.at // alignment) * alignment
    tensors = tuple(_place(entry, data_start, alignment, source) for entry in entries)
    _check_names(tensors, source.path)
    check_apart(tensors, source.path)
    return GgufHeader(source, MappingProxyType(metadata), tensors, cursor.digest())


def read_model(path: Path) -> tuple[GgufHeader, ...]:
    """The headers of a model: one file, or every file of a split when ``path`` is one of them."""
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None:
        return (_read_whole(path),)
    named_count = int(match["count"])
    if not 1 <= named_count <= MAX_SPLITS:
        raise UnsupportedModel(f"{path} is split into {named_count} parts; at most {MAX_SPLITS} are supported")
    headers = tuple(_read_part(path, match["prefix"], number, named_count) for number in range(named_count))
    _check_parts(headers, path)
    return headers


def model_name(path: Path) -> str:
    """The file's name without extension and part number."""
    match = _SPLIT_NAME.fullmatch(path.name)
    return match["prefix"] if match else path.stem


# --- metadata


class _Cursor:
    """A position in the header, over the part of the file that was needed so far."""

    def __init__(self, source: SourceFile, descriptor: int) -> None:
        self.path = source.path
        self.size = source.size
        self.descriptor = descriptor
        self.buffer = b""
        self.at = 0
        self.strings_left = MAX_STRINGS
        self.numbers_left = MAX_NUMBERS

    def take(self, nbytes: int, what: str) -> bytes:
        """The next bytes."""
        start = self.at
        self.at = stop = start + nbytes
        if stop > len(self.buffer):
            self.extend(stop, what)
        return self.buffer[start:stop]

    def extend(self, stop: int, what: str) -> None:
        """Have the buffer reach ``stop``; it doubles, so that the whole header is copied a few times at most."""
        if stop > self.size:
            raise MalformedFile(f"{self.path} ends at byte {self.size}, inside {what}", hint=AGAIN_HINT)
        if stop > MAX_HEADER_BYTES:
            raise MalformedFile(f"{self.path}: {what} makes the header longer than {MAX_HEADER_BYTES} bytes")
        wanted = min(max(stop, 2 * len(self.buffer), FIRST_READ_BYTES), self.size, MAX_HEADER_BYTES)
        more = np.empty(wanted - len(self.buffer), np.uint8)
        fill(self.descriptor, len(self.buffer), more, self.path)
        self.buffer += more.tobytes()

    def unsigned(self, nbytes: int, what: str) -> int:
        return int.from_bytes(self.take(nbytes, what), "little")

    def count(self, what: str, limit: int, smallest_bytes: int) -> int:
        """A number of things that follow, which must fit in the file and under the limit."""
        value = self.unsigned(8, f"the number of {what}")
        if value > limit or value * smallest_bytes > self.size - self.at:
            raise MalformedFile(f"{self.path} claims {value} {what}, more than it can hold", hint=AGAIN_HINT)
        return value

    def string(self, what: str) -> str:
        length = self.count(f"bytes in {what}", MAX_HEADER_BYTES, 1)
        return self.decoded(self.take(length, what), what)

    def decoded(self, data: bytes, what: str) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedFile(f"{self.path}: {what} is not UTF-8") from None

    def strings(self, what: str) -> list[str]:
        """An array of strings: the one loop that is long, so it keeps everything in locals and decodes afterwards."""
        count = self.count(f"strings in {what}", self.strings_left, 8)
        self.strings_left -= count
        buffer, at, end = self.buffer, self.at, len(self.buffer)
        length_at = _LENGTH.unpack_from
        found: list[bytes] = []
        for _ in range(count):
            start = at + 8
            if start > end:
                self.extend(start, what)
                buffer, end = self.buffer, len(self.buffer)
            at = start + length_at(buffer, at)[0]
            if at > end:
                self.extend(at, what)
                buffer, end = self.buffer, len(self.buffer)
            found.append(buffer[start:at])
        self.at = at
        try:
            return list(map(bytes.decode, found))
        except UnicodeDecodeError:
            raise MalformedFile(f"{self.path}: a string in {what} is not UTF-8") from None

    def digest(self) -> bytes:
        """SHA-256 of the header's bytes."""
        return hashlib.sha256(memoryview(self.buffer)[: self.at]).digest()


def _check_magic(cursor: _Cursor) -> None:
    if cursor.size < 4 or cursor.take(4, "the magic number") != MAGIC:
        raise MalformedFile(f"{cursor.path} is not a GGUF file", hint=AGAIN_HINT)
    version = cursor.unsigned(4, "the version")
    if version & 0xFFFF == 0:
        raise UnsupportedModel(f"{cursor.path} is a big-endian GGUF file", hint="pull the little-endian one")
    if version not in VERSIONS:
        raise UnsupportedModel(
            f"{cursor.path} is GGUF version {version}; versions 2 and 3 are supported",
            hint="convert the model again with a current converter",
        )


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = checked_name(cursor.string("a metadata key"), "metadata key", cursor.path)
        if key in metadata:
            raise MalformedFile(f"{cursor.path}: metadata key {quoted(key)} appears twice")
        metadata[key] = _read_value(cursor, key)
    return metadata


def _read_value(cursor: _Cursor, key: str) -> Any:
    what = f"the value of {quoted(key)}"
    kind = cursor.unsigned(4, what)
    if kind == _STRING:
        return cursor.string(what)
    if kind == _ARRAY:
        return _read_array(cursor, what)
    return _read_numbers(cursor, kind, 1, what)[0]


def _read_array(cursor: _Cursor, what: str) -> list[Any]:
    kind = cursor.unsigned(4, what)
    if kind == _STRING:
        return cursor.strings(what)
    if kind == _ARRAY:
        raise MalformedFile(f"{cursor.path}: {what} is an array of arrays")
    width = _SCALARS[kind].itemsize if kind in _SCALARS else 1
    count = cursor.count(f"numbers in {what}", cursor.numbers_left, width)
    cursor.numbers_left -= count
    return _read_numbers(cursor, kind, count, what)


def _read_numbers(cursor: _Cursor, kind: int, count: int, what: str) -> list[Any]:
    dtype = _SCALARS.get(kind)
    if dtype is None:
        raise MalformedFile(f"{cursor.path}: {what} has the unknown type {kind}")
    values = np.frombuffer(cursor.take(count * dtype.itemsize, what), dtype)
    if kind == _BOOL:
        if values.size and values.max() > 1:
            raise MalformedFile(f"{cursor.path}: {what} is neither true nor false")
        values = values.view(np.bool_)
    numbers: list[Any] = values.tolist()
    return numbers


def _alignment(metadata: Mapping[str, Any], path: Path) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise MalformedFile(f"{path}: general.alignment must be a power of two up to {MAX_ALIGNMENT}")
    return value


# --- tensors


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor as the header states it."""

    name: str
    dims: tuple[int, ...]  # fastest first
    type_id: int
    offset: int  # from the start of the data


def _read_tensor(cursor: _Cursor) -> _Entry:
    name = checked_name(cursor.string("a tensor's name"), "tensor", cursor.path)
    what = f"the entry of tensor {quoted(name)}"
    n_dims = cursor.unsigned(4, what)
    if not 1 <= n_dims <= MAX_DIMENSIONS:
        raise MalformedFile(f"{cursor.path}: tensor {quoted(name)} has {n_dims} dimensions, not 1 to {MAX_DIMENSIONS}")
    dims = tuple(cursor.unsigned(8, what) for _ in range(n_dims))
    return _Entry(name, dims, cursor.unsigned(4, what), cursor.unsigned(8, what))


def _place(entry: _Entry, data_start: int, alignment: int, source: SourceFile) -> TensorInfo:
    """Check an entry against the file and say where its bytes are."""
    label = f"{source.path}: tensor {quoted(entry.name)}"
    format = _format(entry.type_id, label)
    if 0 in entry.dims:
        raise MalformedFile(f"{label} has an empty dimension")
    if entry.dims[0] % format.block_elements:
        raise MalformedFile(f"{label} has rows of {entry.dims[0]} values, not whole {format.name} blocks")
    if entry.offset % alignment:
        raise MalformedFile(f"{label} starts at {entry.offset}, which is not a multiple of {alignment}")
    shape = entry.dims[::-1]
    nbytes = math.prod(shape[:-1]) * format.row_bytes(shape[-1])
    offset = data_start + entry.offset
    if offset + nbytes > source.size:
        raise MalformedFile(
            f"{label} needs bytes {offset} to {offset + nbytes}, but the file has {source.size}",
            hint=AGAIN_HINT,
        )
    return TensorInfo(entry.name, format.name, shape, source.path, offset, nbytes)


def _format(type_id: int, label: str) -> Format:
    format = BY_GGUF_ID.get(type_id)
    if format is None:
        name = OTHER_GGUF_TYPES.get(type_id, f"type {type_id}")
        raise UnsupportedModel(
            f"{label} is stored as {name}, which Finback does not run",
            hint="choose a file in Q4_K_M, Q8_0 or another format from Q2_K to BF16",
        )
    return format


def _check_names(tensors: tuple[TensorInfo, ...], path: Path) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise MalformedFile(f"{path}: tensor {quoted(tensor.name)} appears twice")
        seen.add(tensor.name)


# --- splits


def _read_whole(path: Path) -> GgufHeader:
    header = read_header(look_at(path))
    if header.metadata.get("split.count", 1) != 1:
        raise MalformedFile(
            f"{path} says that it is one of several parts but is not named like one",
            hint="give the parts their published names, ...-00001-of-0000N.gguf",
        )
    return header


def _read_part(path: Path, prefix: str, number: int, count: int) -> GgufHeader:
    name = f"{prefix}-{number + 1:05d}-of-{count:05d}.gguf"
    real = path if name == path.name else member(path.parent, name)
    if not real.exists():
        raise MalformedFile(
            f"{path.parent / name} is missing: part {number + 1} of {count}", hint="pull the model again"
        )
    header = read_header(look_at(real))
    stated = (header.metadata.get("split.no", number), header.metadata.get("split.count", 1))
    if stated != (number, count):
        raise MalformedFile(f"{real} is named part {number + 1} of {count} but says that it is another")
    return header


def _check_parts(headers: tuple[GgufHeader, ...], path: Path) -> None:
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    _check_names(tensors, path)
    stated = headers[0].metadata.get("split.tensors.count", len(tensors))
    if stated != len(tensors):
        raise MalformedFile(f"{path}: the parts hold {len(tensors)} tensors, but the first promises another number")
