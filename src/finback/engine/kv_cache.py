"""Which block of the key-value cache belongs to whom: integers and names only, no array is touched here.

The cache's memory is cut into blocks of ``block_size`` tokens. A sequence has a table of the blocks that hold
its positions in order. A full block can get a name that stands for everything its content depends on: then another
sequence that begins alike finds it, and both tables hold it. A named block that no table holds stays as it is until
its memory is needed, least recently used first. Free blocks are handed out last in, first out, so that memory that
was used before is used again before fresh memory is touched.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

NAME_BYTES = 32


def root_name(key: bytes, *facts: str) -> bytes:
    """Where a chain of names starts: sequences of different ``facts`` share nothing, and no name tells them."""
    digest = blake2b(key=key, digest_size=NAME_BYTES)
    for fact in facts:
        encoded = fact.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()


class BlockNames:
    """The names of one sequence's full blocks: each is a digest of the name before it and of the block's tokens.

    ``num_prompt`` is given where keys and values depend on a token's role: a block's name then also says how many of
    its tokens are the prompt's.
    """

    def __init__(self, root: bytes, block_size: int, num_prompt: int | None = None) -> None:
        self._root = root
        self._block_size = block_size
        self._num_prompt = num_prompt
        self._names: list[bytes] = []

    def of(self, tokens: Sequence[int], count: int) -> list[bytes]:
        """Names of the first ``count`` blocks, all of them full. ``tokens`` may only grow from call to call."""
        for index in range(len(self._names), count):
            parent = self._names[-1] if self._names else self._root
            self._names.append(self._next(parent, tokens, index * self._block_size))
        return self._names[:count]

    def _next(self, parent: bytes, tokens: Sequence[int], start: int) -> bytes:
        given = 0 if self._num_prompt is None else min(max(self._num_prompt - start, 0), self._block_size)
        words = array("i", tokens[start : start + self._block_size])
        words.append(given)
        return blake2b(parent + words.tobytes(), digest_size=NAME_BYTES).digest()


class KVCache:
    """Block tables over a pool. Invariant: a block is free, or kept, or counted once per table that holds it."""

    def __init__(self, num_blocks: int, block_size: int, *, most_kept: int = 0) -> None:
        """``most_kept``: blocks that stay for their content when nobody holds them, at most; 0: names are ignored."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._most_kept = most_kept
        self._free = list(range(num_blocks - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()  # named, held by nobody; least recently used first
        self._references = [0] * num_blocks
        self._name_of: list[bytes | None] = [None] * num_blocks
        self._named: dict[bytes, int] = {}
        self._tables: dict[str, array[int]] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds: they can be had at once."""
        return len(self._free) + len(self._kept)

    @property
    def num_kept(self) -> int:
        """Blocks that nobody holds and that stay for their content."""
        return len(self._kept)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` positions take."""
        return -(-num_tokens // self.block_size)

    def missing(self, owner: str, num_tokens: int) -> int:
        """Blocks that ``owner`` would have to be given to hold ``num_tokens``."""
        return max(0, self.blocks_for(num_tokens) - len(self._tables.get(owner, ())))

    def table(self, owner: str) -> array[int]:
        """The blocks of ``owner`` in order of position. Borrowed: read it before the cache changes again."""
        return self._tables[owner]

    def find(self, names: Sequence[bytes]) -> int:
        """How many of the blocks of these names are there, up to the first that is not."""
        return next((i for i, name in enumerate(names) if name not in self._named), len(names))

    def adopt(self, owner: str, names: Sequence[bytes]) -> int:
        """Begin ``owner``'s table with the blocks of these names, as far as all are there; returns how many."""
        assert owner not in self._tables, "a table is begun twice"
        table = self._tables[owner] = array("i")
        for name in names[: self.find(names)]:
            block = self._named[name]
            self._kept.pop(block, None)
            self._references[block] += 1
            table.append(block)
        return len(table)

    def grow(self, owner: str, num_tokens: int) -> bool:
        """Make ``owner``'s table hold ``num_tokens`` positions; False, changing nothing, if blocks lack."""
        missing = self.missing(owner, num_tokens)
        if missing > self.num_free:
            return False
        table = self._tables.setdefault(owner, array("i"))
        for _ in range(missing):
            if not self._free:
                self._forget_oldest()
            block = self._free.pop()
            self._references[block] = 1
            table.append(block)
        return True

    def name(self, owner: str, index: int, name: bytes) -> None:
        """Say what block ``index`` of ``owner`` holds, now that it is full. The first block of a name keeps it."""
        block = self._tables[owner][index]
        if self._most_kept and name not in self._named and self._name_of[block] is None:
            self._named[name] = block
            self._name_of[block] = name

    def named(self) -> list[tuple[bytes, int]]:
        """Names and their blocks, those that would be forgotten last first."""
        held = [block for block in self._named.values() if block not in self._kept]
        return [(name, block) for block in (*held, *reversed(self._kept)) if (name := self._name_of[block]) is not None]

    def release(self, owner: str) -> None:
        """Take ``owner``'s table away; what no other table holds is kept if it has a name, else free."""
        # The end first: it is worth less than the beginning, which more sequences share.
        for block in reversed(self._tables.pop(owner, array("i"))):
            self._references[block] -= 1
            if self._references[block] > 0:
                continue
            if self._name_of[block] is None:
                self._free.append(block)
            else:
                self._kept[block] = None
        while len(self._kept) > self._most_kept:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        block, _ = self._kept.popitem(last=False)
        name = self._name_of[block]
        assert name is not None, "a kept block has no name"
        del self._named[name]
        self._name_of[block] = None
        self._free.append(block)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block is accounted for exactly once."""
        held = Counter(block for table in self._tables.values() for block in table)
        assert len(set(self._free)) == len(self._free), "a block is free twice"
        assert held.keys().isdisjoint(self._free), "a block is both free and held"
        assert held.keys().isdisjoint(self._kept), "a block is both kept and held"
        assert self._kept.keys().isdisjoint(self._free), "a block is both free and kept"
        assert len(held) + len(self._kept) + len(self._free) == self.num_blocks, "a block is lost"
        assert all(self._references[block] == held[block] for block in range(self.num_blocks)), "a count is wrong"
        assert all(len(set(table)) == len(table) for table in self._tables.values()), "a table holds a block twice"
        assert len(self._kept) <= self._most_kept, "too much is kept"
        named = {block: name for block, name in enumerate(self._name_of) if name is not None}
        assert named == {block: name for name, block in self._named.items()}, "names and blocks disagree"
        assert self._kept.keys() <= named.keys(), "a kept block has no name"
        assert named.keys().isdisjoint(self._free), "a free block has a name"
