"""The calls that do several kernels' work at once: bit for bit what those kernels give one after the other."""

from __future__ import annotations

import gc
import signal
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from finback import kernels
from finback.errors import KernelArgumentError
from finback.kernels import Norm, reference
from tests.kernels.packed import normal, published
from tests.kernels.paged import CACHE_TYPES, Pages

EPS = 1e-5
ROUTING: dict[str, Any] = {
    "bias": None,
    "scoring": "softmax",
    "top_k": 2,
    "groups": 1,
    "top_groups": 1,
    "group_rule": "none",
    "normalize": True,
    "scale": 1.5,
}


def a_norm(rng: np.random.Generator, width: int) -> Norm:
    return normal(rng, width) + 1, EPS


def rotation(rng: np.random.Generator, n: int, pairs: int) -> dict[str, NDArray[np.float32]]:
    return {"cos": normal(rng, n, pairs), "sin": normal(rng, n, pairs)}


@pytest.mark.parametrize("format", ["q4_0", "q4_k", "bf16"])
@pytest.mark.parametrize("n", [1, 3, 17])
def test_products_of_normalised_rows(isa: str, rng: np.random.Generator, format: str, n: int) -> None:
    wide, narrow = 256, 512
    gate, up = (published(rng, format, narrow, wide).matrix for _ in range(2))
    down = published(rng, format, wide, narrow).matrix
    x, norm = normal(rng, n, wide), a_norm(rng, wide)
    h = kernels.rms_norm(x, *norm)
    for got, expected in zip(kernels.linear(x, [gate, up], norm=norm), kernels.linear(h, [gate, up]), strict=True):
        np.testing.assert_array_equal(got, expected)
    expected = kernels.mlp(h, gate, up, down, add=x)
    np.testing.assert_array_equal(kernels.mlp(x, gate, up, down, norm=norm, add=x), expected)
    twin = reference.mlp(x, gate, up, down, norm=norm, add=x)
    np.testing.assert_allclose(expected, twin, rtol=0, atol=0.02 * np.abs(twin).max())


@pytest.mark.parametrize("n", [0, 1, 9])
@pytest.mark.parametrize("threads", [1, 2])
def test_routed_moe(isa: str, rng: np.random.Generator, n: int, threads: int) -> None:
    kernels.set_threads(threads)
    hidden, inner, experts = 64, 96, 5
    router = published(rng, "f32", experts, hidden).matrix
    gate, up = (published(rng, "q8_0", inner, hidden, experts).matrix for _ in range(2))
    down = published(rng, "q8_0", hidden, inner, experts).matrix
    shared = tuple(published(rng, "q4_1", *shape).matrix for shape in ((32, hidden), (32, hidden), (hidden, 32)))
    x, norm = normal(rng, n, hidden), a_norm(rng, hidden)
    options: dict[str, Any] = {"shared": shared, "norm": norm, "add": x}
    ids, weights = kernels.route(kernels.linear(x, [router], norm=norm)[0], **ROUTING)
    expected = kernels.moe(x, ids, weights, gate, up, down, **options)
    actual = kernels.routed_moe(x, router, gate, up, down, **options, **ROUTING)
    np.testing.assert_array_equal(actual, expected)
    twin = reference.routed_moe(x, router, gate, up, down, **options, **ROUTING)
    np.testing.assert_allclose(actual, twin, rtol=0, atol=0.02 * max(1, np.abs(twin).max(initial=0)))


def a_layer(rng: np.random.Generator, format: str, biased: bool) -> tuple[Any, Any]:
    """Weights of q, k, v and o for 6 heads of 16 on 2 with values of 24, and their biases."""
    shapes = ((96, 64), (32, 64), (48, 64), (64, 144))
    weights = tuple(published(rng, format if cols % 32 == 0 else "f32", rows, cols).matrix for rows, cols in shapes)
    return weights, tuple(normal(rng, rows) if biased else None for rows, _ in shapes)


@pytest.mark.parametrize("dtype", CACHE_TYPES)
@pytest.mark.parametrize("whole", [False, True])  # with biases, norms of heads, neighbours as pairs
@pytest.mark.parametrize("n", [0, 1, 5])
def test_grouped_attention(isa: str, rng: np.random.Generator, dtype: type[Any], whole: bool, n: int) -> None:
    weights, biases = a_layer(rng, "q8_0", whole)
    x, norm, turn = normal(rng, n, 64), a_norm(rng, 64), rotation(rng, n, 8)
    q_norm, k_norm = (a_norm(rng, 16), a_norm(rng, 16)) if whole else (None, None)
    pages = Pages.shuffled(rng, (9, 4), 4)
    where = {
        "block_tables": pages.block_tables,
        "seq_ids": np.array([0, 0, 0, 1, 1], np.int32)[:n],
        "positions": np.array([6, 7, 8, 2, 3], np.int32)[:n],
        "scale": 0.2,
    }
    slots = np.array([pages.slots(s)[p] for s, p in zip(where["seq_ids"], where["positions"], strict=True)], np.int64)
    before = [pages.cache(dtype, [normal(rng, length, 2, width) for length in pages.lengths]) for width in (16, 24)]
    expected_caches, caches = ([cache.copy() for cache in before] for _ in range(2))

    q, k, v = kernels.linear(x, weights[:3], norm=norm, bias=biases[:3])
    q, k, v = q.reshape(n, 6, 16), k.reshape(n, 2, 16), v.reshape(n, 2, 24)
    if q_norm is not None and k_norm is not None:
        q, k = kernels.rms_norm(q, *q_norm), kernels.rms_norm(k, *k_norm)
    for heads in (q, k):
        kernels.rope(heads, **turn, interleaved=whole)
    for cache, rows in zip(expected_caches, (k, v), strict=True):
        kernels.store_rows(cache, rows, slots)
    attended = kernels.attention(q, *expected_caches, **where).reshape(n, 144)
    expected = kernels.linear(attended, weights[3:], bias=biases[3:], add=x)[0]

    part = kernels.GroupedAttention(
        weights, *caches, norm=norm, biases=biases, q_norm=q_norm, k_norm=k_norm, interleaved=whole,
        scale=where.pop("scale"),
    )  # fmt: skip
    before_x = x.copy()
    np.testing.assert_array_equal(kernels.run_parts([part], x, slots=slots, **turn, **where), expected)
    np.testing.assert_array_equal(x, before_x)
    for cache, right in zip(caches, expected_caches, strict=True):
        np.testing.assert_array_equal(cache, right)


def a_network(rng: np.random.Generator, format: str, hidden: int, inner: int) -> tuple[kernels.Matrix, ...]:
    """Gate, up and down."""
    shapes = ((inner, hidden), (inner, hidden), (hidden, inner))
    return tuple(published(rng, format, *shape).matrix for shape in shapes)


@pytest.mark.parametrize("format", ["q4_0", "bf16"])
@pytest.mark.parametrize("n", [0, 1, 17])
def test_parts_in_a_row(isa: str, rng: np.random.Generator, format: str, n: int) -> None:
    hidden, inner = 256, 512
    networks = [a_network(rng, format, hidden, inner) for _ in range(3)]
    norms = [a_norm(rng, hidden) for _ in networks]
    x = normal(rng, n, hidden)
    parts = [kernels.GatedNetwork(*network, norm=norm) for network, norm in zip(networks, norms, strict=True)]
    got = kernels.run_parts(parts, x, **no_cache(n))
    for network, norm in zip(networks, norms, strict=True):
        x = kernels.mlp(x, *network, norm=norm, add=x)
    np.testing.assert_array_equal(got, x)


def test_a_signal_ends_a_run_of_parts(rng: np.random.Generator) -> None:
    class Bell(Exception):
        pass

    def ring(*_: object) -> None:
        raise Bell

    part = kernels.GatedNetwork(*a_network(rng, "bf16", 256, 512), norm=a_norm(rng, 256))
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Bell):
            kernels.run_parts([part] * 20000, normal(rng, 64, 256), **no_cache(64))  # seconds
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def no_cache(n: int) -> dict[str, Any]:
    """What a step brings, for parts that have no cache."""
    return {
        "slots": np.arange(n), "cos": np.zeros((n, 0), np.float32), "sin": np.zeros((n, 0), np.float32),
        "block_tables": np.zeros((1, 1), np.int32), "seq_ids": np.zeros(n, np.int32),
        "positions": np.zeros(n, np.int32),
    }  # fmt: skip


def test_a_part_keeps_what_it_reads(rng: np.random.Generator) -> None:
    def make() -> kernels.Part:
        return kernels.GatedNetwork(*a_network(rng, "q8_0", 64, 64), norm=a_norm(rng, 64))

    part, x = make(), normal(rng, 2, 64)
    first = kernels.run_parts([part], x, **no_cache(2))
    gc.collect()
    held = [np.full(1 << 16, 255, np.uint8) for _ in range(64)]  # takes up memory that was given back
    np.testing.assert_array_equal(kernels.run_parts([part], x, **no_cache(2)), first)
    assert len(held) == 64


@pytest.mark.parametrize("dtype", CACHE_TYPES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_cache_latents(rng: np.random.Generator, dtype: type[Any], interleaved: bool) -> None:
    n, heads, nope, turned, latent = 4, 3, 12, 8, 20
    q, latents = normal(rng, n, heads * (nope + turned)), normal(rng, n, latent + turned)
    norm, turn = a_norm(rng, latent), rotation(rng, n, turned // 2)
    slots = rng.permutation(12)[:n].astype(np.int64)
    expected, cache = (np.zeros((3, 4, latent + turned), dtype) for _ in range(2))

    expected_q, entries = q.reshape(n, heads, -1).copy(), latents.copy()
    kernels.rope(expected_q, **turn, interleaved=interleaved, start=nope)
    kernels.rope(entries.reshape(n, 1, -1), **turn, interleaved=interleaved, start=latent)
    entries[:, :latent] = kernels.rms_norm(np.ascontiguousarray(entries[:, :latent]), *norm)
    kernels.store_rows(expected, entries, slots)

    kernels.cache_latents(
        q, latents, cache, slots=slots, **turn, interleaved=interleaved, head_dim=nope + turned, norm=norm
    )
    np.testing.assert_array_equal(q, expected_q.reshape(n, -1))
    np.testing.assert_array_equal(cache, expected)


@pytest.mark.parametrize("format", ["f32", "bf16", "q8_0"])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_mla_decode(isa: str, rng: np.random.Generator, format: str, n: int) -> None:
    heads, nope, latent, turned, value = 3, 32, 64, 6, 24
    k_absorb = published(rng, format, latent, nope, heads).matrix
    v_up = published(rng, format, value, latent, heads).matrix
    pages = Pages.shuffled(rng, (70, 5), 16)
    cache = pages.cache(np.uint16, [normal(rng, length, latent + turned) for length in pages.lengths])
    seq_ids = rng.integers(0, 2, n).astype(np.int32)
    where = {
        "block_tables": pages.block_tables,
        "seq_ids": seq_ids,
        "positions": np.array([rng.integers(0, pages.lengths[s]) for s in seq_ids], np.int32),
        "scale": 0.1,
    }
    q = normal(rng, n, heads, nope + turned)
    q_latent = kernels.head_linear(np.ascontiguousarray(q[..., :nope]), k_absorb)
    attended = kernels.mla_attention(q_latent, np.ascontiguousarray(q[..., nope:]), cache, **where)
    expected = kernels.head_linear(attended, v_up)
    np.testing.assert_array_equal(kernels.mla_decode(q, k_absorb, v_up, cache, **where), expected)


def test_what_does_not_fit_is_refused(rng: np.random.Generator) -> None:
    w = published(rng, "f32", 8, 4).matrix
    x = normal(rng, 2, 4)
    with pytest.raises(KernelArgumentError, match=r"\[linear\] norm must be float32 \[4\]"):
        kernels.linear(x, [w], norm=(np.ones(3, np.float32), EPS))
    cache, slots = np.zeros((1, 4, 1, 4), np.float32), np.array([0, 4])
    turn = rotation(rng, 2, 2)
    with pytest.raises(KernelArgumentError, match=r"\[cache_latents\] the cache must hold latents"):
        kernels.cache_latents(
            x.copy(), x.copy(), cache[:, :, 0], slots=slots % 4, **turn, interleaved=True, head_dim=4,
            norm=(np.ones(4, np.float32), EPS),
        )  # fmt: skip
    with pytest.raises(KernelArgumentError, match=r"\[mla_decode\] cache must hold at least"):
        kernels.mla_decode(
            x.reshape(2, 1, 4), w, w, np.zeros((1, 4, 6), np.float32), block_tables=np.zeros((1, 1), np.int32),
            seq_ids=np.zeros(2, np.int32), positions=np.zeros(2, np.int32), scale=1.0,
        )  # fmt: skip


def test_layers_that_do_not_fit_are_refused(rng: np.random.Generator) -> None:
    weights, biases = a_layer(rng, "f32", True)
    x, rows = normal(rng, 2, 64), np.arange(2)
    good: dict[str, Any] = {
        "weights": weights,
        "k_cache": np.zeros((1, 4, 2, 16), np.float32), "v_cache": np.zeros((1, 4, 2, 24), np.float32),
        "norm": a_norm(rng, 64), "biases": biases, "q_norm": None, "k_norm": None, "interleaved": False, "scale": 1.0,
    }  # fmt: skip
    step = {**no_cache(2), **rotation(rng, 2, 8), "positions": rows.astype(np.int32)}
    part = kernels.GroupedAttention(**good)
    kernels.run_parts([part], x, **step)
    read_only = good["k_cache"].copy()
    read_only.flags.writeable = False
    for wrong, message in (
        ({"weights": (*weights[:3], weights[0])}, "o must be"),
        ({"weights": (weights[3], *weights[1:])}, "k must be"),
        ({"weights": (weights[2], *weights[1:])}, "q's heads must be a multiple of k_cache's: 3 against 2"),
        ({"weights": (weights[0], weights[2], *weights[2:])}, "k must be"),
        ({"biases": (biases[1], *biases[1:])}, r"bias must be float32 \[96\]"),
        ({"k_cache": read_only}, "k_cache must not be read-only"),
        ({"v_cache": np.zeros((1, 4, 1, 24), np.float32)}, "v_cache must match k_cache"),
        ({"q_norm": a_norm(rng, 24)}, "norm must be"),
    ):
        with pytest.raises(KernelArgumentError, match=rf"\[GroupedAttention\] {message}"):
            kernels.GroupedAttention(**{**good, **wrong})
    untouched = good["k_cache"].copy()
    for wrong, message in (
        ({"slots": rows + 3}, r"slots\[1\] is 4"),
        ({"positions": rows.astype(np.int32) + 3}, "positions"),
        (rotation(rng, 2, 9), r"elements 0 to 0 \+ 18 must lie inside a head"),
        ({"seq_ids": np.ones(2, np.int32)}, r"seq_ids\[0\] is 1"),
        ({"block_tables": np.ones((1, 1), np.int32)}, r"block_tables\[0, 0\] is 1"),
    ):
        with pytest.raises(KernelArgumentError, match=rf"\[GroupedAttention\] {message}"):
            kernels.run_parts([part], x + 1, **{**step, **wrong})
    np.testing.assert_array_equal(good["k_cache"], untouched)
    with pytest.raises(KernelArgumentError, match=r"\[run_parts\] x must be float32 \[n, 64\]"):
        kernels.run_parts([part], normal(rng, 2, 32), **step)
    gate, down = weights[0], published(rng, "f32", 64, 80).matrix
    with pytest.raises(KernelArgumentError, match=r"\[GatedNetwork\] down must be"):
        kernels.GatedNetwork(gate, gate, down, norm=a_norm(rng, 64))
