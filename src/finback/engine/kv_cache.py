"""Which block of the key-value cache belongs to which sequence: integers only, no array is touched here.

The cache's memory is cut into blocks of ``block_size`` tokens. A sequence has a table of the blocks that hold
its positions in order. A block may stand in several tables (a shared prefix): it is free when nobody counts
on it. Free blocks are handed out last in, first out, so that memory that was used before is used again before
fresh memory is touched.
"""

from __future__ import annotations

from array import array
from collections import Counter


class KVCache:
    """Block tables over a pool. Invariant: a block is free, or counted once per table that holds it."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._references = [0] * num_blocks
        self._tables: dict[str, array[int]] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` positions take."""
        return -(-num_tokens // self.block_size)

    def missing(self, owner: str, num_tokens: int) -> int:
        """Blocks that ``owner`` would have to be given to hold ``num_tokens``."""
        return max(0, self.blocks_for(num_tokens) - len(self._tables.get(owner, ())))

    def table(self, owner: str) -> array[int]:
        """The blocks of ``owner`` in order of position. Borrowed: read it before the cache changes again."""
        return self._tables[owner]

    def grow(self, owner: str, num_tokens: int) -> bool:
        """Make ``owner``'s table hold ``num_tokens`` positions; False, changing nothing, if blocks lack."""
        missing = self.missing(owner, num_tokens)
        if missing > len(self._free):
            return False
        table = self._tables.setdefault(owner, array("i"))
        for _ in range(missing):
            block = self._free.pop()
            self._references[block] = 1
            table.append(block)
        return True

    def release(self, owner: str) -> None:
        """Take ``owner``'s table away; its blocks are free unless another table holds them."""
        for block in reversed(self._tables.pop(owner, array("i"))):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free.append(block)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block is accounted for exactly once."""
        held = Counter(block for table in self._tables.values() for block in table)
        assert len(set(self._free)) == len(self._free), "a block is free twice"
        assert held.keys().isdisjoint(self._free), "a block is both free and held"
        assert len(held) + len(self._free) == self.num_blocks, "a block is lost"
        assert all(self._references[block] == held[block] for block in range(self.num_blocks)), "a count is wrong"
        assert all(len(set(table)) == len(table) for table in self._tables.values()), "a table holds a block twice"
