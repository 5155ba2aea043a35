"""The block books: nothing is lost, nothing is given twice."""

from __future__ import annotations

import pytest

from finback.engine.kv_cache import KVCache


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
    ],
)
def test_integrity_check_finds_damage(damage, complaint: str) -> None:
    cache = KVCache(num_blocks=4, block_size=4)
    cache.grow("a", 8)
    cache.check_integrity()
    damage(cache)
    with pytest.raises(AssertionError, match=complaint):
        cache.check_integrity()
