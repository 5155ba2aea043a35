"""Paged caches for tests: shuffled blocks, and NaN wherever no position lives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finback.kernels import reference

CACHE_TYPES = [np.float32, np.float16, np.uint16]


@dataclass(frozen=True)
class Pages:
    """Block tables for sequences of the given lengths, in a cache that is larger than they need."""

    block_tables: NDArray[np.int32]
    lengths: tuple[int, ...]
    block_size: int
    blocks: int

    @classmethod
    def shuffled(cls, rng: np.random.Generator, lengths: tuple[int, ...], block_size: int) -> Pages:
        """Distinct random blocks; entries behind the last one needed are not valid block numbers."""
        needed = [-(-length // block_size) for length in lengths]
        blocks = sum(needed) + 3
        free = list(rng.permutation(blocks))
        tables = np.full((len(lengths), max(needed) + 1), -7, np.int32)
        for row, count in zip(tables, needed, strict=True):
            row[:count] = [free.pop() for _ in range(count)]
        return cls(tables, lengths, block_size, blocks)

    def slots(self, seq: int) -> NDArray[np.int64]:
        """Where the positions of a sequence lie."""
        positions = np.arange(self.lengths[seq])
        blocks = self.block_tables[seq, positions // self.block_size].astype(np.int64)
        return blocks * self.block_size + positions % self.block_size

    def cache(self, dtype: type[Any], contents: list[NDArray[np.float32]]) -> NDArray[Any]:
        """A cache that holds ``contents[s]`` ([length, ...]) for each sequence and NaN elsewhere."""
        cache = np.empty((self.blocks, self.block_size, *contents[0].shape[1:]), dtype)
        everywhere = np.arange(self.blocks * self.block_size)
        poison = np.full((len(everywhere), *contents[0].shape[1:]), np.nan, np.float32)
        reference.store_rows(cache, poison, everywhere)
        for seq, values in enumerate(contents):
            reference.store_rows(cache, values, self.slots(seq))
        return cache


def normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Standard normal float32 numbers."""
    return rng.standard_normal(shape, np.float32)
