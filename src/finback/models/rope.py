"""Rotary position tables: the angle of each pair of dimensions at each position, for every scaling rule.

The tables are float32 and follow the published order of operations, because at position 100,000 one unit in
the last place of a frequency is already an angle that shows in the logits. They are computed once per step
for the positions of the batch, and every layer shares them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from finback.errors import MalformedFile, ShapeMismatch, UnsupportedModel
from finback.weights.config import RopeConfig

Vector: TypeAlias = NDArray[np.float32]
Tables: TypeAlias = tuple[Vector, Vector]  # cos and sin, each [rows, pairs]


@dataclass(frozen=True, slots=True)
class Rotary:
    """Frequencies of the pairs, and the factor on cos and sin (YaRN's attention factor; 1 otherwise)."""

    frequencies: Vector
    amplitude: float

    def tables(self, positions: NDArray[np.int32]) -> Tables:
        """cos and sin of every pair's angle at ``positions``."""
        angles = positions.astype(np.float32)[:, None] * self.frequencies
        amplitude = np.float32(self.amplitude)
        return np.cos(angles) * amplitude, np.sin(angles) * amplitude


def rotary(rope: RopeConfig, dim: int, divisors: Vector | None = None) -> Rotary:
    """The tables of ``dim`` dimensions; ``divisors`` are the per-pair factors that some GGUF files ship."""
    if divisors is not None:
        return Rotary(_divided(_plain(rope.theta, dim), divisors), 1.0)
    if rope.type == "none":
        return Rotary(_plain(rope.theta, dim), 1.0)
    if rope.type == "linear":
        return Rotary(_plain(rope.theta, dim) / np.float32(rope.factor), 1.0)
    if rope.type == "llama3":
        return Rotary(_llama3(rope, dim), 1.0)
    if rope.type == "yarn":
        return Rotary(_yarn(rope, dim), rope.attention_factor)
    raise UnsupportedModel(f"rotary scaling {rope.type!r} is not one that Finback computes")


def _powers(theta: float, dim: int) -> Vector:
    # Raised in float64 and rounded once: correctly rounded float32 powers on every platform.
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.power(float(theta), exponents.astype(np.float64)).astype(np.float32)


def _plain(theta: float, dim: int) -> Vector:
    return np.float32(1.0) / _powers(theta, dim)


def _divided(frequencies: Vector, divisors: Vector) -> Vector:
    if divisors.shape != frequencies.shape:
        expected, actual = frequencies.shape, divisors.shape
        raise ShapeMismatch(f"rope_freqs has shape {actual}, but the heads need {expected}")
    if not np.all((divisors > 1e-3) & (divisors < 1e9)):
        raise MalformedFile("rope_freqs holds a divisor that no rotary scaling uses: the file is damaged")
    return frequencies / divisors


def _llama3(rope: RopeConfig, dim: int) -> Vector:
    """Long waves are slowed by the factor, short ones kept, and those between are blended."""
    plain = _plain(rope.theta, dim)
    slowed = plain / np.float32(rope.factor)
    low, high = rope.low_freq_factor, rope.high_freq_factor
    turns = np.float32(rope.original_max_position_embeddings) / (np.float32(2 * math.pi) / plain)
    blend = (turns - np.float32(low)) / np.float32(high - low)
    blended = (np.float32(1) - blend) * slowed + blend * plain
    return np.where(turns > high, plain, np.where(turns < low, slowed, blended))


def _yarn(rope: RopeConfig, dim: int) -> Vector:
    """Pairs that turn often within the original context are kept, those that turn seldom are interpolated."""
    powers = _powers(rope.theta, dim)
    low, high = _pair_of_turns(rope, dim, rope.beta_fast), _pair_of_turns(rope, dim, rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32((high - low) or 0.001)
    kept = np.float32(1) - np.clip(ramp, np.float32(0), np.float32(1))
    interpolated = np.float32(1) / (np.float32(rope.factor) * powers)
    blended: Vector = interpolated * (np.float32(1) - kept) + np.float32(1) / powers * kept
    return blended


def _pair_of_turns(rope: RopeConfig, dim: int, turns: float) -> float:
    """Index (fractional) of the pair that makes ``turns`` full turns over the original context."""
    wavelength = rope.original_max_position_embeddings / (turns * 2 * math.pi)
    return dim * math.log(wavelength) / (2 * math.log(rope.theta))
