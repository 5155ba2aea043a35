"""Typed, ranged access to configurations that strangers wrote, and the ranges.

A value that is absent, of the wrong type, not finite or out of range becomes a typed error that names the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from finback.errors import MalformedFile, UnsupportedModel

GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3", "deepseek2")
RUNS = f"Finback runs llama, qwen2, qwen3, deepseek_v2 and deepseek_v3 (GGUF: {', '.join(GGUF_ARCHITECTURES)})"

# Bounds far above every published model; they keep products of sizes within 64 bits and loops finite.
MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20
MAX_HEADS = 1 << 14
MAX_EXPERTS = 1 << 14
MAX_VOCAB = 1 << 24
MAX_CONTEXT = 1 << 30
MIN_THETA = 1.001  # its logarithm is a divisor


class Fields:
    """Typed, ranged access to one mapping of untrusted values. ``None`` counts as absent."""

    def __init__(self, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
        self._values = values
        self._source = source
        self._prefix = prefix

    def get(self, key: str) -> Any:
        value = self._values.get(self._prefix + key)
        return value.tolist() if isinstance(value, np.ndarray) else value

    def holds_sections(self) -> bool:
        """Whether some value is itself an object."""
        return any(isinstance(value, dict) for value in self._values.values())

    def has(self, key: str) -> bool:
        return self.get(key) is not None

    def bad(self, key: str, wanted: str, value: Any) -> MalformedFile:
        return MalformedFile(f"{self._source}: {self._prefix}{key} must be {wanted}, not {shown(value)}")

    def require(self, key: str) -> None:
        if not self.has(key):
            raise MalformedFile(f"{self._source} has no {self._prefix}{key}, which this architecture needs")

    def integer(self, key: str, low: int, high: int, *, default: int | None = None) -> int:
        """A whole number in [low, high]; without a default the key is required."""
        value = self.get(key)
        if value is None:
            if default is None:
                self.require(key)
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.bad(key, f"a whole number from {low} to {high}", value)
        return value

    def number(self, key: str, low: float, high: float, *, default: float | None = None) -> float:
        """A finite number in [low, high]; without a default the key is required."""
        value = self.get(key)
        if value is None:
            if default is None:
                self.require(key)
            value = default
        # The comparison is false for NaN, and a huge int compares without overflowing.
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise self.bad(key, f"a number from {low:g} to {high:g}", value)
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.bad(key, "true or false", value)
        return value

    def text(self, key: str, *, default: str) -> str:
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self.bad(key, "a string", value)
        return value

    def token_ids(self, key: str, vocab_size: int) -> tuple[int, ...]:
        """Nothing, one token id, or a list of them."""
        value = self.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if len(ids) > 1024:
            raise self.bad(key, "at most 1024 token ids", value)
        for token in ids:
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < MAX_VOCAB:
                raise self.bad(key, f"token ids below {MAX_VOCAB}", value)
        # Ids beyond the embedding can never be generated; some published files carry them.
        return tuple(token for token in ids if token < vocab_size)

    def section(self, key: str) -> Fields | None:
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.bad(key, "an object", value)
        return Fields(value, f"{self._source}: {key}")

    def refuse_unless(self, condition: object, key: str, why: str) -> None:
        if not condition:
            where = f"{self._source}: {self._prefix}{key}"
            raise UnsupportedModel(f"{where} = {shown(self.get(key))} {why}", hint=RUNS)


def shown(value: Any) -> str:
    """An untrusted value for a message: short, and safe for numbers too long to print."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
