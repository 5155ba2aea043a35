"""Grouped-query attention against its twin, rule R1, and arguments that must be refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from finback import kernels
from finback.errors import KernelArgumentError
from finback.kernels import reference
from tests.kernels.paged import CACHE_TYPES, Pages, normal

# Scores near 1, values near 1: what float32 sums of a few hundred terms may lose.
TOLERANCE = 3e-6
# Positions at the borders of blocks, of the kernel's tiles of 64, and of its partial results of 256.
BORDERS = [0, 1, 62, 63, 64, 65, 127, 128, 255, 256, 257, 511, 512, 700]

# heads, key heads, key width, value width, block size
SHAPES = [(9, 3, 64, 64, 64), (6, 2, 24, 40, 7), (5, 5, 20, 13, 16), (7, 1, 128, 128, 64), (2, 2, 1, 3, 1)]


class Case:
    """Sequences with a cache, and one query per entry of ``where``."""

    def __init__(
        self,
        rng: np.random.Generator,
        shape: tuple[int, int, int, int, int],
        dtype: type[Any],
        where: list[tuple[int, int]],
    ) -> None:
        heads, kv_heads, key_dim, value_dim, block_size = shape
        sequences = max(seq for seq, _ in where) + 1
        lengths = tuple(max([p for s, p in where if s == seq], default=0) + 1 for seq in range(sequences))
        self.rng, self.dtype, self.block_size = rng, dtype, block_size
        self.lengths = lengths
        self.keys = [normal(rng, n, kv_heads, key_dim) for n in lengths]
        self.values = [normal(rng, n, kv_heads, value_dim) for n in lengths]
        self.q = normal(rng, len(where), heads, key_dim)
        self.where = np.array(where, np.int32).reshape(-1, 2)
        self.place()

    def place(self) -> None:
        """Put the sequences into blocks of a new cache."""
        pages = Pages.shuffled(self.rng, self.lengths, self.block_size)
        self.block_tables = pages.block_tables
        self.k = pages.cache(self.dtype, self.keys)
        self.v = pages.cache(self.dtype, self.values)

    def run(self, rows: slice | NDArray[np.int64] = slice(None), face: Any = kernels) -> NDArray[np.float32]:
        seq_ids, positions = np.ascontiguousarray(self.where[rows].T)
        result: NDArray[np.float32] = face.attention(
            np.ascontiguousarray(self.q[rows]), self.k, self.v, block_tables=self.block_tables,
            seq_ids=seq_ids, positions=positions, scale=self.q.shape[2] ** -0.5,
        )  # fmt: skip
        return result


def places(rng: np.random.Generator) -> list[tuple[int, int]]:
    """Tokens of three sequences, some of the same sequence next to each other, at borders."""
    return [(int(seq), int(rng.choice(BORDERS))) for seq in np.sort(rng.integers(0, 3, 12))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", CACHE_TYPES)
def test_equals_the_twin(
    isa: str, rng: np.random.Generator, dtype: type[Any], shape: tuple[int, int, int, int, int]
) -> None:
    case = Case(rng, shape, dtype, places(rng))
    np.testing.assert_allclose(case.run(), case.run(face=reference), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("position", BORDERS)
def test_each_border(isa: str, rng: np.random.Generator, position: int) -> None:
    case = Case(rng, (6, 2, 24, 40, 32), np.float32, [(0, position)])
    np.testing.assert_allclose(case.run(), case.run(face=reference), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", CACHE_TYPES)
def test_a_row_is_the_same_alone_and_among_others(
    isa: str, rng: np.random.Generator, dtype: type[Any], threads: int
) -> None:
    where = [*places(rng), *[(3, p) for p in range(600, 640)]]
    case = Case(rng, (6, 2, 40, 72, 64), dtype, where)
    alone = np.concatenate([case.run(slice(i, i + 1)) for i in range(len(where))])
    kernels.set_threads(threads)
    np.testing.assert_array_equal(case.run(), alone)
    shuffled = rng.permutation(len(where))
    np.testing.assert_array_equal(case.run(shuffled), alone[shuffled])


@pytest.mark.parametrize("chunk", [1, 7, 64, 300])
def test_a_prompt_in_chunks(isa: str, rng: np.random.Generator, chunk: int) -> None:
    case = Case(rng, (4, 2, 16, 16, 64), np.float16, [(0, p) for p in range(300)])
    whole = case.run()
    parts = [case.run(slice(start, start + chunk)) for start in range(0, 300, chunk)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("block_size", [1, 5, 64, 1000])
def test_placement_does_not_matter(isa: str, rng: np.random.Generator, block_size: int) -> None:
    case = Case(rng, (4, 2, 16, 24, 64), np.uint16, places(rng))
    before = case.run()
    case.block_size = block_size
    case.place()
    np.testing.assert_array_equal(case.run(), before)


def test_long_contexts_on_any_number_of_threads(isa: str, rng: np.random.Generator) -> None:
    case = Case(rng, (8, 2, 64, 64, 64), np.float16, [(0, 3000), (1, 50), (2, 1999)])
    one = case.run()
    np.testing.assert_allclose(one, case.run(face=reference), rtol=0, atol=TOLERANCE)
    for threads in [2, 3, 5]:
        kernels.set_threads(threads)
        np.testing.assert_array_equal(case.run(), one)


def test_later_positions_cannot_leak_into_earlier_tokens(isa: str, rng: np.random.Generator) -> None:
    case = Case(rng, (2, 1, 16, 16, 64), np.float32, [(0, p) for p in range(70)])
    before = case.run(slice(0, 66))
    for values in (case.keys[0], case.values[0]):
        values[66:] = np.nan
    case.place()
    after = case.run()
    np.testing.assert_array_equal(after[:66], before)
    assert np.isnan(after[66:]).all()


def test_large_scores_do_not_overflow(isa: str, rng: np.random.Generator) -> None:
    case = Case(rng, (2, 1, 16, 16, 64), np.float32, [(0, 300)])
    case.q *= 1e4
    np.testing.assert_allclose(case.run(), case.run(face=reference), rtol=0, atol=2e-2)


def test_no_tokens(isa: str, rng: np.random.Generator) -> None:
    case = Case(rng, (4, 2, 16, 24, 8), np.float32, [(0, 3)])
    assert case.run(slice(0, 0)).shape == (0, 4, 24)


@pytest.mark.parametrize("shape", [(9, 3, 64, 64, 64), (16, 1, 72, 72, 64)])
def test_close_to_scalar_and_equal_on_vectors_of_any_width(
    rng: np.random.Generator, shape: tuple[int, int, int, int, int]
) -> None:
    case = Case(rng, shape, np.float16, [(0, 900), *((1, position) for position in range(70))])
    results = []
    for name in kernels.available_isas():
        previous = kernels.select_isa(name)
        results.append(case.run())
        kernels.select_isa(previous)
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=0, atol=TOLERANCE)
        np.testing.assert_array_equal(result, results[1])


BAD: list[tuple[str, dict[str, Any]]] = [
    ("positions", {"positions": np.array([-1], np.int32)}),
    ("positions", {"positions": np.array([16], np.int32)}),
    ("positions", {"positions": np.array([2**31 - 1], np.int32)}),
    ("positions", {"positions": np.array([0, 1], np.int32)}),
    ("positions", {"positions": np.array([1], np.int64)}),
    ("seq_ids", {"seq_ids": np.array([1], np.int32)}),
    ("seq_ids", {"seq_ids": np.array([-1], np.int32)}),
    ("block_tables", {"block_tables": np.array([[0, 3]], np.int32)}),
    ("block_tables", {"block_tables": np.array([[0, -1]], np.int32)}),
    ("block_tables", {"block_tables": np.array([0, 1], np.int32)}),
    ("multiple", {"q": np.zeros((1, 3, 4), np.float32)}),
    ("q", {"q": np.zeros((1, 4, 5), np.float32)}),
    ("q", {"q": np.zeros((1, 4, 4), np.float64)}),
    ("q", {"q": np.zeros((1, 4, 8), np.float32)[:, :, ::2]}),
    ("k_cache", {"k_cache": np.zeros((3, 8, 2, 4), np.int16)}),
    ("k_cache", {"k_cache": np.zeros((3, 8, 8), np.float32)}),
    ("v_cache", {"v_cache": np.zeros((3, 8, 2, 4), np.float16)}),
    ("v_cache", {"v_cache": np.zeros((2, 8, 2, 4), np.float32)}),
    ("v_cache", {"v_cache": np.zeros((3, 8, 2, 0), np.float32)}),
]


@pytest.mark.parametrize(("names", "change"), BAD)
def test_refuses(names: str, change: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "q": np.zeros((1, 4, 4), np.float32),
        "k_cache": np.zeros((3, 8, 2, 4), np.float32),
        "v_cache": np.zeros((3, 8, 2, 4), np.float32),
        "block_tables": np.array([[2, 1]], np.int32),
        "seq_ids": np.array([0], np.int32),
        "positions": np.array([8], np.int32),
    }
    assert kernels.attention(**good, scale=1.0).shape == (1, 4, 4)
    with pytest.raises(KernelArgumentError, match=rf"\[attention\].*{names}"):
        kernels.attention(**{**good, **change}, scale=1.0)
