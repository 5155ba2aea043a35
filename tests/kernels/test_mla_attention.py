"""Absorbed latent attention against its twin, against the expanded form, and under rule R1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from finback import kernels
from finback.errors import KernelArgumentError
from finback.kernels import reference
from tests.kernels.paged import CACHE_TYPES, Pages, normal

TOLERANCE = 3e-6
# heads, latent width, rotary width, block size
# tile registers take those whose widths are multiples of 64 and, together, of 32
SHAPES = [
    (16, 512, 64, 64), (7, 64, 16, 16), (4, 32, 8, 16), (3, 21, 6, 5), (5, 24, 0, 7), (20, 128, 32, 5), (33, 64, 0, 16),
]  # fmt: skip


class Case:
    """Sequences of latents in a cache, and one query per entry of ``where``."""

    def __init__(
        self,
        rng: np.random.Generator,
        shape: tuple[int, int, int, int],
        dtype: type[Any],
        where: list[tuple[int, int]],
    ) -> None:
        heads, latent, rope, block_size = shape
        sequences = max(seq for seq, _ in where) + 1
        lengths = tuple(max([p for s, p in where if s == seq], default=0) + 1 for seq in range(sequences))
        pages = Pages.shuffled(rng, lengths, block_size)
        self.cache = pages.cache(dtype, [normal(rng, n, latent + rope) for n in lengths])
        self.block_tables = pages.block_tables
        self.q_latent = normal(rng, len(where), heads, latent)
        self.q_rope = normal(rng, len(where), heads, rope)
        self.where = np.array(where, np.int32)

    def run(self, rows: slice = slice(None), face: Any = kernels) -> NDArray[np.float32]:
        seq_ids, positions = np.ascontiguousarray(self.where[rows].T)
        width = self.cache.shape[2]
        result: NDArray[np.float32] = face.mla_attention(
            self.q_latent[rows], self.q_rope[rows], self.cache, block_tables=self.block_tables,
            seq_ids=seq_ids, positions=positions, scale=width**-0.5,
        )  # fmt: skip
        return result


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", CACHE_TYPES)
def test_equals_the_twin(
    isa: str, rng: np.random.Generator, dtype: type[Any], shape: tuple[int, int, int, int]
) -> None:
    case = Case(rng, shape, dtype, [(0, 0), (0, 65), (1, 255), (2, 256), (2, 600)])
    np.testing.assert_allclose(case.run(), case.run(face=reference), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", CACHE_TYPES)
@pytest.mark.parametrize("rope", [16, 32])
def test_a_row_is_the_same_alone_and_among_others(
    isa: str, rng: np.random.Generator, dtype: type[Any], threads: int, rope: int
) -> None:
    where = [(0, 1500), *[(1, p) for p in range(250, 266)], (2, 63), (2, 64), (0, 300)]
    case = Case(rng, (6, 64, rope, 64), dtype, where)
    alone = np.concatenate([case.run(slice(i, i + 1)) for i in range(len(where))])
    kernels.set_threads(threads)
    np.testing.assert_array_equal(case.run(), alone)
    np.testing.assert_array_equal(case.run(slice(3, 12)), alone[3:12])


def test_equals_the_expanded_form(isa: str, rng: np.random.Generator) -> None:
    heads, latent, nope, rope, width, context = 4, 32, 24, 8, 20, 150
    latents, k_rope = normal(rng, context, latent), normal(rng, context, rope)
    k_up = normal(rng, heads, nope, latent) / np.float32(latent**0.5)
    v_up = normal(rng, heads, width, latent) / np.float32(latent**0.5)
    q = normal(rng, context, heads, nope + rope)
    expanded = kernels.mla_prefill(
        q, np.einsum("tl,hdl->thd", latents, k_up), k_rope, np.einsum("tl,hdl->thd", latents, v_up),
        first_position=0, scale=0.2,
    )  # fmt: skip
    pages = Pages.shuffled(rng, (context,), 64)
    mixed = kernels.mla_attention(
        np.einsum("nhd,hdl->nhl", q[..., :nope], k_up), np.ascontiguousarray(q[..., nope:]),
        pages.cache(np.float32, [np.concatenate([latents, k_rope], axis=1)]), block_tables=pages.block_tables,
        seq_ids=np.zeros(context, np.int32), positions=np.arange(context, dtype=np.int32), scale=0.2,
    )  # fmt: skip
    np.testing.assert_allclose(np.einsum("nhl,hdl->nhd", mixed, v_up), expanded, rtol=0, atol=1e-5)


BAD: list[tuple[str, dict[str, Any]]] = [
    ("cache", {"cache": np.zeros((2, 4, 7), np.float32)}),
    ("cache", {"cache": np.zeros((2, 4, 6), np.float64)}),
    ("cache", {"cache": np.zeros((2, 0, 6), np.float32)}),
    ("q_rope", {"q_rope": np.zeros((1, 2, 2), np.float32)}),
    ("q_latent", {"q_latent": np.zeros((3, 4), np.float32)}),
    ("positions", {"positions": np.array([4], np.int32)}),
    ("block_tables", {"block_tables": np.array([[2]], np.int32)}),
]


@pytest.mark.parametrize(("names", "change"), BAD)
def test_refuses(names: str, change: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "q_latent": np.zeros((1, 3, 4), np.float32),
        "q_rope": np.zeros((1, 3, 2), np.float32),
        "cache": np.zeros((2, 4, 6), np.float32),
        "block_tables": np.array([[1]], np.int32),
        "seq_ids": np.array([0], np.int32),
        "positions": np.array([3], np.int32),
    }
    assert kernels.mla_attention(**good, scale=1.0).shape == (1, 3, 4)
    with pytest.raises(KernelArgumentError, match=rf"\[mla_attention\].*{names}"):
        kernels.mla_attention(**{**good, **change}, scale=1.0)
