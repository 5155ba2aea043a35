"""The block books: nothing is lost, nothing is given twice, and what is found by name is what was put there."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from finback.engine.kv_cache import BlockNames, KVCache, root_name


def test_tables_grow_by_whole_blocks() -> None:
    cache = KVCache(num_blocks=4, block_size=64)
    assert cache.grow("a", 1)
    assert cache.grow("a", 64)
    assert list(cache.table("a")) == [0]
    assert cache.grow("a", 65)
    assert list(cache.table("a")) == [0, 1]
    assert cache.num_free == 2


def test_growing_is_all_or_nothing() -> None:
    cache = KVCache(num_blocks=2, block_size=4)
    assert cache.grow("a", 4)
    assert not cache.grow("b", 5)
    assert not cache.grow("a", 9)
    assert list(cache.table("a")) == [0]
    assert cache.num_free == 1
    cache.check_integrity()


def test_used_memory_is_used_again_first() -> None:
    cache = KVCache(num_blocks=8, block_size=4)
    cache.grow("a", 12)
    used = list(cache.table("a"))
    cache.release("a")
    cache.grow("b", 12)
    assert list(cache.table("b")) == used


def test_releasing_twice_or_a_stranger_does_nothing() -> None:
    cache = KVCache(num_blocks=2, block_size=4)
    cache.grow("a", 8)
    cache.release("a")
    cache.release("a")
    cache.release("stranger")
    assert cache.num_free == 2
    cache.check_integrity()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda cache: cache._free.append(cache._free[-1]), "free twice"),
        (lambda cache: cache._free.append(cache.table("a")[0]), "both free and held"),
        (lambda cache: cache._free.pop(), "lost"),
        (lambda cache: cache.table("a").append(cache._free.pop()), "count is wrong"),
        (lambda cache: cache._kept.update({cache.table("a")[0]: None}), "both kept and held"),
        (lambda cache: cache._free.append(next(iter(cache._kept))), "both free and kept"),
        (lambda cache: cache._named.popitem(), "disagree"),
    ],
)
def test_integrity_check_finds_damage(damage, complaint: str) -> None:
    cache = KVCache(num_blocks=5, block_size=4, most_kept=2)
    cache.grow("b", 4)
    cache.name("b", 0, b"name")
    cache.release("b")
    cache.grow("a", 8)
    cache.check_integrity()
    damage(cache)
    with pytest.raises(AssertionError, match=complaint):
        cache.check_integrity()


ROOT = root_name(b"secret", "tenant")


def names(tokens: list[int], count: int, *, root: bytes = ROOT, num_prompt: int | None = None) -> list[bytes]:
    return BlockNames(root, 4, num_prompt).of(tokens, count)


def test_a_name_stands_for_everything_before_it() -> None:
    tokens = list(range(12))
    assert names(tokens, 3) == names([*tokens, 99], 3)
    assert len(set(names([1] * 12, 3))) == 3  # equal tokens at other positions
    assert names(tokens, 3)[1:] != names([9, *tokens[1:]], 3)[1:]  # other tokens far before
    assert not set(names(tokens, 3)) & set(names(tokens, 3, root=root_name(b"secret", "another")))
    assert not set(names(tokens, 3)) & set(names(tokens, 3, root=root_name(b"other", "tenant")))


def test_facts_do_not_run_into_each_other() -> None:
    assert root_name(b"k", "ab", "c") != root_name(b"k", "a", "bc")


def test_names_tell_the_roles_of_tokens_where_they_matter() -> None:
    tokens = list(range(12))
    five, six, all_given = (names(tokens, 3, num_prompt=n) for n in (5, 6, 12))
    assert five[0] == six[0] == all_given[0]
    assert len({five[1], six[1], all_given[1]}) == len({five[2], six[2], all_given[2]}) == 3
    assert all_given == names(tokens, 3, num_prompt=500)


def test_names_grow_with_the_tokens() -> None:
    tokens = list(range(4))
    chain = BlockNames(ROOT, 4)
    assert chain.of(tokens, 1) == names(tokens, 1)
    tokens += range(4, 12)
    assert chain.of(tokens, 3) == names(tokens, 3)
    assert chain.of(tokens, 2) == names(tokens, 2)


def written(cache: KVCache, owner: str, *block_names: bytes) -> list[int]:
    """A sequence comes, fills its blocks and goes; returns the blocks it had."""
    cache.adopt(owner, block_names)
    assert cache.grow(owner, 4 * len(block_names))
    for index, name in enumerate(block_names):
        cache.name(owner, index, name)
    blocks = list(cache.table(owner))
    cache.release(owner)
    return blocks


def test_a_beginning_is_found_again_and_shared() -> None:
    cache = KVCache(num_blocks=4, block_size=4, most_kept=4)
    blocks = written(cache, "a", b"1", b"2")
    assert (cache.num_free, cache.num_kept) == (4, 2)
    assert cache.adopt("b", [b"1", b"other"]) == 1
    assert cache.adopt("c", [b"1", b"2", b"3"]) == 2
    assert [list(cache.table(owner)) for owner in "bc"] == [blocks[:1], blocks]
    assert (cache.num_free, cache.num_kept) == (2, 0)
    cache.check_integrity()
    for owner in "bc":
        cache.release(owner)
    assert (cache.num_free, cache.num_kept) == (4, 2)


def test_ends_are_forgotten_before_beginnings() -> None:
    cache = KVCache(num_blocks=3, block_size=4, most_kept=3)
    written(cache, "a", b"1", b"2", b"3")
    cache.grow("b", 4)
    cache.release("b")
    assert cache.adopt("c", [b"1", b"2", b"3"]) == 2


def test_what_was_used_last_is_kept() -> None:
    cache = KVCache(num_blocks=4, block_size=4, most_kept=2)
    for name in (b"1", b"2", b"1", b"3"):
        written(cache, "a", name)
    assert cache.num_kept == 2
    assert [cache.adopt(f"r{name!r}", [name]) for name in (b"1", b"2", b"3")] == [1, 0, 1]


def test_nothing_is_kept_when_nothing_may_be() -> None:
    cache = KVCache(num_blocks=4, block_size=4)
    written(cache, "a", b"1")
    assert (cache.num_kept, cache.adopt("b", [b"1"])) == (0, 0)


class Sharing(RuleBasedStateMachine):
    """Sequences over few tokens come, grow, are named and go. A dictionary says what each block was filled with."""

    SIZE, BLOCKS = 2, 9

    def __init__(self) -> None:
        super().__init__()
        self.cache = KVCache(self.BLOCKS, self.SIZE, most_kept=5)
        self.content: dict[int, tuple[int, ...]] = {}  # block -> all tokens up to its end
        self.sequences: dict[str, list[int]] = {}
        self.count = 0

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=12))
    def come(self, tokens: list[int]) -> None:
        owner, self.count = f"s{self.count}", self.count + 1
        full = len(tokens) // self.SIZE
        chain = BlockNames(ROOT, self.SIZE).of(tokens, full)
        free = self.cache.num_free
        found = self.cache.adopt(owner, chain)
        for index in range(found):
            assert self.content[self.cache.table(owner)[index]] == tuple(tokens[: (index + 1) * self.SIZE])
        if not self.cache.grow(owner, len(tokens)):
            self.cache.release(owner)
            assert self.cache.num_free == free
            return
        self.sequences[owner] = tokens
        for index in range(found, full):
            self.content[self.cache.table(owner)[index]] = tuple(tokens[: (index + 1) * self.SIZE])
            self.cache.name(owner, index, chain[index])
        for block in list(self.cache.table(owner))[full:]:
            self.content[block] = ()

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(sorted(self.sequences)))
        del self.sequences[owner]
        self.cache.release(owner)

    @invariant()
    def books_are_right(self) -> None:
        self.cache.check_integrity()
        for owner, tokens in self.sequences.items():
            full = len(tokens) // self.SIZE
            expected = [tuple(tokens[: (index + 1) * self.SIZE]) for index in range(full)]
            assert [self.content[block] for block in list(self.cache.table(owner))[:full]] == expected


Sharing.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True)
TestSharing = Sharing.TestCase
