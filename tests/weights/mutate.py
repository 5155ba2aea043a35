"""Mutations of model files: of bytes anywhere, and of what the bytes mean (JSON values, metadata, tensor entries).

Every function takes a random generator and returns something changed; the same generator state gives the same change.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests.weights.writers import Raw, Typed, safetensors_bytes

Random = np.random.Generator

INTEGERS = (
    0, 1, 2, 3, 7, 8, 31, 32, 33, 127, 128, 255, 256, 4096, 65535, 65536, (1 << 20) + 1, (1 << 31) - 1, 1 << 31,
    (1 << 32) - 1, 1 << 32, (1 << 40) + 8, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
JSON_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 255, 1 << 31, 1 << 63, -(1 << 63), 10**40, 0.0, -0.5, 1e-300, 1e308, "", "x",
    "../x", "/etc/passwd", "llama", "deepseek_v3", "yarn", "\0", "ü" * 300, [], [0], [1, 2, 3], [[[]]], {}, {"a": 1},
)  # fmt: skip
GGUF_VALUES: tuple[Any, ...] = (
    0, 1, 2, 3, 5, 255, 1 << 31, (1 << 63) - 1, -1, -(1 << 62), Typed("u64", (1 << 64) - 1), 0.0, -1.0, float("nan"),
    float("inf"), 1e-38, Typed("f64", 1e308), True, False, "", "x", "llama", "qwen2", "deepseek2", "gpt2", "yarn",
    "\0", "ü" * 300, ["a"], [""], [0, 1], [0.5], [True], Typed("array:str", []), Typed("array:u8", []),
    Typed("str", b"\xff\xfe"), Typed("i8", -3), Typed("array:i64", [-1, 1 << 40]),
)  # fmt: skip
SHAPES: tuple[tuple[int, ...], ...] = (
    (0,),
    (1,),
    (3, 5),
    (64, 64),
    (1 << 40,),
    (1 << 32, 1 << 32),
    (1, 1, 1, 1),
    (0, 8),
)


def pick(rng: Random, items: Any) -> Any:
    """One of a sequence; NumPy's own choice would turn the items into an array."""
    return items[int(rng.integers(len(items)))]


# --- bytes


def mutate_bytes(data: bytes, focus: int, rng: Random) -> bytes:
    """One change, nearly always within the first ``focus`` bytes, where the header is."""
    if not data:
        return rng.bytes(8)
    end = focus if rng.random() < 0.85 else len(data)
    at = int(rng.integers(max(1, min(end, len(data)))))
    operation: Callable[[bytes, int, Random], bytes] = pick(rng, _BYTE_OPERATIONS)
    return operation(data, at, rng)


def _length(rng: Random) -> int:
    return int(2 ** rng.uniform(0, 7))


def _flip(data: bytes, at: int, rng: Random) -> bytes:
    changed = bytearray(data)
    for place in range(at, min(at + int(rng.integers(1, 4)), len(data))):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _integer(data: bytes, at: int, rng: Random) -> bytes:
    width = pick(rng, (1, 2, 4, 8))
    number = (pick(rng, INTEGERS) & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    return (data[:at] + number + data[at + width :])[: len(data)]


def _neighbour(data: bytes, at: int, rng: Random) -> bytes:
    return data[:at] + bytes([(data[at] + int(rng.integers(-2, 3))) % 256]) + data[at + 1 :]


def _cut(data: bytes, at: int, rng: Random) -> bytes:
    return data[:at]


def _remove(data: bytes, at: int, rng: Random) -> bytes:
    return data[:at] + data[at + _length(rng) :]


def _insert(data: bytes, at: int, rng: Random) -> bytes:
    filling = pick(rng, (bytes, lambda n: b"\xff" * n, rng.bytes))
    return data[:at] + filling(_length(rng)) + data[at:]


def _repeat(data: bytes, at: int, rng: Random) -> bytes:
    length = _length(rng)
    return data[: at + length] + data[at : at + length] + data[at + length :]


def _fill(data: bytes, at: int, rng: Random) -> bytes:
    piece = data[at : at + _length(rng)]
    return data[:at] + pick(rng, (b"\0", b"\xff", b"\x7f", b"[", b'"')) * len(piece) + data[at + len(piece) :]


def _copy(data: bytes, at: int, rng: Random) -> bytes:
    start = int(rng.integers(len(data)))
    piece = data[start : start + _length(rng)]
    return (data[:at] + piece + data[at + len(piece) :])[: len(data)]


def _append(data: bytes, at: int, rng: Random) -> bytes:
    return data + rng.bytes(_length(rng))


_BYTE_OPERATIONS = (
    _flip,
    _flip,
    _integer,
    _integer,
    _neighbour,
    _cut,
    _remove,
    _insert,
    _repeat,
    _fill,
    _copy,
    _append,
)


# --- meaning


def mutate_json(value: Any, rng: Random) -> Any:
    """A copy of a JSON document with one node replaced, removed, renamed or nested."""
    value = json.loads(json.dumps(value))
    paths = list(_containers(value))
    node = pick(rng, paths)
    if not node:
        return pick(rng, JSON_VALUES)
    key = pick(rng, list(node) if isinstance(node, dict) else range(len(node)))
    action = rng.random()
    if action < 0.7:
        node[key] = pick(rng, JSON_VALUES)
    elif action < 0.8:
        del node[key]
    elif action < 0.9 and isinstance(node, dict):
        node[pick(rng, (key + "x", "", "../" + key, key.upper()))] = node.pop(key)
    else:
        node[key] = [node[key]]
    return value


def _containers(value: Any) -> list[Any]:
    """Every list and object of a document, large ones no more often than small ones."""
    found, level = [value], [value]
    while level:
        children = (child for node in level for child in (node.values() if isinstance(node, dict) else node))
        level = [child for child in children if isinstance(child, dict | list)]
        found += level
    return found


def mutate_safetensors_header(data: bytes, rng: Random) -> bytes:
    """Another header of the right length before the same data."""
    length = struct.unpack_from("<Q", data)[0]
    header = mutate_json(json.loads(data[8 : 8 + length]), rng)
    return safetensors_bytes(json.dumps(header).encode(), data[8 + length :])


def mutate_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], rng: Random
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata or tensors with one entry replaced, removed or renamed."""
    metadata, tensors = dict(metadata), dict(tensors)
    entries = metadata if rng.random() < 0.6 or not tensors else tensors
    key = pick(rng, list(entries))
    action = rng.random()
    if action < 0.15:
        del entries[key]
    elif action < 0.25:
        entries[pick(rng, (key + "x", key.upper(), "\0", "n" * 600))] = entries.pop(key)
    elif entries is metadata:
        metadata[key] = _other_value(metadata[key], rng)
    else:
        tensors[key] = _other_tensor(tensors, key, rng)
    return metadata, tensors


def _other_value(value: Any, rng: Random) -> Any:
    """Mostly something foreign, sometimes something near."""
    items = list(value.value if isinstance(value, Typed) else value) if not isinstance(value, str | int | float) else []
    if items and rng.random() < 0.6:
        action = rng.random()
        if action < 0.4:
            items[int(rng.integers(len(items)))] = pick(rng, items)
        elif action < 0.7:
            del items[int(rng.integers(len(items))) :]
        else:
            items *= 2
        return Typed(value.type, items) if isinstance(value, Typed) else items
    if isinstance(value, int) and rng.random() < 0.4:
        return max(0, value + int(rng.integers(-2, 3)))
    return pick(rng, GGUF_VALUES)


def _other_tensor(tensors: Mapping[str, Any], key: str, rng: Random) -> Any:
    if rng.random() < 0.4:
        return pick(rng, list(tensors.values()))
    tensor = tensors[key]
    raw = tensor if isinstance(tensor, Raw) else Raw("F32", tensor.shape, tensor.tobytes())
    action = rng.random()
    if action < 0.3:
        return Raw(pick(rng, ("F32", "F16", "BF16", "Q4_0", "Q8_0", "Q4_K", "I32", "MXFP4")), raw.shape, raw.data)
    if action < 0.6:
        return Raw(raw.format, pick(rng, (*SHAPES, raw.shape[::-1], (*raw.shape, 1), raw.shape[1:])), raw.data)
    poison = pick(rng, (b"\xff", b"\x00\x7c", b"\x00\x00\xc0\x7f", b"\x00\x80"))
    at = int(rng.integers(len(raw.data)))
    return Raw(
        raw.format, raw.shape, (raw.data[:at] + poison * 16 + raw.data[at + 16 * len(poison) :])[: len(raw.data)]
    )
