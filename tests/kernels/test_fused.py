"""The calls that do several kernels' work at once: bit for bit what those kernels give one after the other."""

from __future__ import annotations

import gc
import signal
from dataclasses import dataclass
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
NO_PROMPTS = np.zeros((0, 2), np.int32)


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


def some_experts(rng: np.random.Generator) -> tuple[tuple[kernels.Matrix, ...], tuple[kernels.Matrix, ...]]:
    """Router, gate, up and down of 5 experts on 64 columns, and gate, up and down of a shared one."""
    hidden, inner, experts = 64, 96, 5
    router = published(rng, "f32", experts, hidden).matrix
    gate, up = (published(rng, "q8_0", inner, hidden, experts).matrix for _ in range(2))
    down = published(rng, "q8_0", hidden, inner, experts).matrix
    return (router, gate, up, down), a_network(rng, "q4_1", hidden, 32)


@pytest.mark.parametrize("n", [0, 1, 9])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("whole", [False, True])  # with shared experts and a bias
def test_routed_network(isa: str, rng: np.random.Generator, n: int, threads: int, whole: bool) -> None:
    kernels.set_threads(threads)
    (router, *networks), shared = some_experts(rng)
    x, norm = normal(rng, n, 64), a_norm(rng, 64)
    routing = {**ROUTING, "bias": normal(rng, 5) if whole else None}
    options: dict[str, Any] = {"shared": shared if whole else None, "norm": norm}
    ids, weights = kernels.route(kernels.linear(x, [router], norm=norm)[0], **routing)
    expected = kernels.moe(x, ids, weights, *networks, **options, add=x)
    part = kernels.RoutedNetwork(router, *networks, **options, **routing)
    np.testing.assert_array_equal(kernels.run_parts([part], x, **no_cache(n)), expected)
    twin = reference.moe(x, ids, weights, *networks, **options, add=x)
    np.testing.assert_allclose(expected, twin, rtol=0, atol=0.02 * max(1, np.abs(twin).max(initial=0)))


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
    step = {"slots": slots, **turn, **where, "prompts": NO_PROMPTS}
    np.testing.assert_array_equal(kernels.run_parts([part], x, **step), expected)
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
        "positions": np.zeros(n, np.int32), "prompts": NO_PROMPTS,
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


@dataclass(frozen=True)
class Latent:
    """A layer of latent attention: 3 heads of 32 + 6 elements on 64 columns, latents of 64, values of 24."""

    matrices: dict[str, kernels.Matrix]
    vectors: dict[str, Any]

    def part(self, cache: NDArray[Any], **changes: Any) -> kernels.Part:
        return kernels.LatentAttention(**{**self.matrices, **self.vectors, "cache": cache, **changes})

    def expected(
        self, x: NDArray[np.float32], cache: NDArray[Any], slots: NDArray[np.int64], turn: dict[str, Any],
        where: dict[str, Any], expanded: list[tuple[int, int]], context: list[NDArray[np.int64]],
    ) -> NDArray[np.float32]:  # fmt: skip
        """The same by kernels of their own; rows ``expanded`` see the slots ``context``."""
        m, v, n = self.matrices, self.vectors, len(x)
        turn = {**turn, "interleaved": v["interleaved"]}
        first = m["q"] if v["bottleneck"] is None else v["bottleneck"][0]
        biases = [v["bottleneck"] and v["bottleneck"][1], v["kv_a_bias"]]
        q, entries = kernels.linear(x, [first, m["kv_a"]], norm=v["norm"], bias=biases)
        if v["bottleneck"] is not None:
            q = kernels.linear(q, [m["q"]], norm=v["bottleneck"][2])[0]
        q = q.reshape(n, 3, 38)
        kernels.rope(q, **turn, start=32)
        kernels.rope(entries.reshape(n, 1, 70), **turn, start=64)
        entries[:, :64] = kernels.rms_norm(np.ascontiguousarray(entries[:, :64]), *v["kv_a_norm"])
        kernels.store_rows(cache, entries, slots)
        q_latent = kernels.head_linear(np.ascontiguousarray(q[..., :32]), m["k_absorb"])
        between = kernels.mla_attention(q_latent, np.ascontiguousarray(q[..., 32:]), cache, **where, scale=v["scale"])
        attended = kernels.head_linear(between, m["v_up"])
        for (start, stop), seen in zip(expanded, context, strict=True):
            read = kernels.load_rows(cache, seen)
            latents, k_rope = np.ascontiguousarray(read[:, :64]), np.ascontiguousarray(read[:, 64:])
            attended[start:stop] = kernels.mla_prefill(
                q[start:stop], kernels.head_linear(latents, m["k_up"]), k_rope,
                kernels.head_linear(latents, m["v_up"]), first_position=int(where["positions"][start]),
                scale=v["scale"],
            )  # fmt: skip
        return kernels.linear(attended.reshape(n, 72), [m["o"]], bias=[v["o_bias"]], add=x)[0]


def a_latent_layer(rng: np.random.Generator, format: str, whole: bool) -> Latent:
    """``whole``: with a bottleneck, biases, and neighbours as pairs."""
    shapes = {"q": (114, 32 if whole else 64), "kv_a": (70, 64), "o": (64, 72)}
    per_head = {"k_up": (32, 64), "k_absorb": (64, 32), "v_up": (24, 64)}
    matrices = {name: published(rng, "f32" if name == "o" else format, *shape).matrix for name, shape in shapes.items()}
    matrices |= {name: published(rng, format, *shape, 3).matrix for name, shape in per_head.items()}
    narrow = (published(rng, format, 32, 64).matrix, normal(rng, 32), a_norm(rng, 32))
    return Latent(matrices, {
        "norm": a_norm(rng, 64), "bottleneck": narrow if whole else None,
        "kv_a_bias": normal(rng, 70) if whole else None, "kv_a_norm": a_norm(rng, 64),
        "o_bias": normal(rng, 64) if whole else None, "interleaved": whole, "scale": 0.2,
        "absorbed_from": 1 << 40, "working_bytes": 1 << 20,
    })  # fmt: skip


@pytest.mark.parametrize("dtype", CACHE_TYPES)
@pytest.mark.parametrize("format", ["f32", "bf16", "q8_0"])
@pytest.mark.parametrize("whole", [False, True])
def test_latent_attention(isa: str, rng: np.random.Generator, dtype: type[Any], format: str, whole: bool) -> None:
    """Answers, a prompt, and a prompt that is absorbed from a position on, in one step; and no row at all."""
    layer = a_latent_layer(rng, format, whole)
    pages = Pages.shuffled(rng, (70, 5, 9), 4)
    before = pages.cache(dtype, [normal(rng, length, 70) for length in pages.lengths])
    rows = [(0, 68), (1, 2), (1, 3), (1, 4), (0, 69), *((2, p) for p in range(4, 9))]
    where = {
        "block_tables": pages.block_tables,
        "seq_ids": np.array([seq for seq, _ in rows], np.int32),
        "positions": np.array([position for _, position in rows], np.int32),
    }
    slots = np.array([pages.slots(seq)[position] for seq, position in rows], np.int64)
    x, turn = normal(rng, len(rows), 64), rotation(rng, len(rows), 3)
    step = {"slots": slots, **turn, **where, "prompts": np.array([(1, 4), (5, 10)], np.int32)}
    for absorbed_from, expanded in ((1 << 40, [(1, 4), (5, 10)]), (6, [(1, 4), (5, 7)]), (3, [(1, 2)]), (0, [])):
        right, cache = before.copy(), before.copy()
        context = [pages.slots(rows[start][0])[: rows[stop - 1][1] + 1] for start, stop in expanded]
        expected = layer.expected(x, right, slots, turn, where, expanded, context)
        for working_bytes in (1 << 20, 1):
            part = layer.part(cache, absorbed_from=absorbed_from, working_bytes=working_bytes)
            np.testing.assert_array_equal(kernels.run_parts([part], x, **step), expected)
            np.testing.assert_array_equal(cache, right)
    nothing = {name: value if name == "block_tables" else value[:0] for name, value in step.items()}
    assert kernels.run_parts([part], x[:0], **nothing).shape == (0, 64)


def test_what_does_not_fit_is_refused(rng: np.random.Generator) -> None:
    w = published(rng, "f32", 8, 4).matrix
    x = normal(rng, 2, 4)
    with pytest.raises(KernelArgumentError, match=r"\[linear\] norm must be float32 \[4\]"):
        kernels.linear(x, [w], norm=(np.ones(3, np.float32), EPS))


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


def test_latent_layers_that_do_not_fit_are_refused(rng: np.random.Generator) -> None:
    layer = a_latent_layer(rng, "f32", True)
    cache, x = np.zeros((2, 4, 70), np.float32), normal(rng, 3, 64)
    read_only = cache.copy()
    read_only.flags.writeable = False
    q_a, bias, norm = layer.vectors["bottleneck"]
    for wrong, message in (
        ({"cache": np.zeros((2, 4, 63), np.float32)}, "cache must hold a latent of 64 elements and pairs"),
        ({"cache": np.zeros((2, 4, 71), np.float32)}, "cache must hold a latent of 64 elements and pairs"),
        ({"cache": np.zeros((2, 4, 72), np.float32)}, "kv_a must be"),
        ({"cache": read_only}, "cache must not be read-only"),
        ({"k_up": layer.matrices["k_absorb"]}, "k_up must be"),
        ({"v_up": layer.matrices["k_absorb"]}, "v_up must be"),
        ({"o": layer.matrices["q"]}, "o must be"),
        ({"bottleneck": None}, "q must be"),
        ({"bottleneck": (layer.matrices["o"], bias, norm)}, "q_a must be"),
        ({"bottleneck": (q_a, normal(rng, 31), norm)}, r"q_a_bias must be float32 \[32\]"),
        ({"o_bias": normal(rng, 63)}, r"o_bias must be float32 \[64\]"),
        ({"kv_a_norm": a_norm(rng, 63)}, "norm must be"),
        ({"absorbed_from": -1}, "absorbed_from must be at least 0"),
        ({"working_bytes": 0}, "working_bytes must be above 0"),
    ):
        with pytest.raises(KernelArgumentError, match=rf"\[LatentAttention\] {message}"):
            layer.part(**{"cache": cache, **wrong})
    part = layer.part(cache)
    step = {
        **no_cache(3), **rotation(rng, 3, 3), "block_tables": np.array([[0, 1]], np.int32),
        "positions": np.arange(3, dtype=np.int32), "prompts": np.array([(0, 3)], np.int32),
    }  # fmt: skip
    for wrong, message in (
        ({"slots": np.arange(3) + 6}, r"slots\[2\] is 8"),
        ({"positions": np.arange(3, dtype=np.int32) + 6}, r"positions\[2\] is 8"),
        (rotation(rng, 3, 2), r"cos must be float32 \[3, 3\]"),
        ({"prompts": np.array([(0, 4)], np.int32)}, r"prompts\[0\] must be rows behind row 0 of 3, not 0 to 4"),
        ({"prompts": np.array([(2, 2)], np.int32)}, r"prompts\[0\] must be rows"),
        ({"prompts": np.array([(1, 3), (0, 1)], np.int32)}, r"prompts\[1\] must be rows behind row 3"),
        ({"prompts": np.array([-1, 2], np.int32)}, "prompts must be"),
        ({"positions": np.array([0, 1, 3], np.int32)}, r"prompts\[0\] must be consecutive .* row 2 is not"),
    ):
        with pytest.raises(KernelArgumentError, match=rf"\[LatentAttention\] {message}"):
            kernels.run_parts([part], x, **{**step, **wrong})
    assert not cache.any()
    kernels.run_parts([part], x, **step)
    assert cache.any()


def test_experts_that_do_not_fit_are_refused(rng: np.random.Generator) -> None:
    (router, gate, up, down), shared = some_experts(rng)
    good: dict[str, Any] = {
        "router": router, "gate": gate, "up": up, "down": down, "shared": shared, "norm": a_norm(rng, 64), **ROUTING,
    }  # fmt: skip
    kernels.RoutedNetwork(**good)
    for wrong, message in (
        ({"router": down}, "router must be"),
        ({"down": gate}, "down must be"),
        ({"shared": (*shared[:2], shared[0])}, "down must be"),
        ({"bias": normal(rng, 4)}, r"bias must be float32 \[5\]"),
        ({"norm": a_norm(rng, 63)}, "norm must be"),
        ({"top_k": 6}, "top_k must be from 1 to 5"),
        ({"scoring": "tanh"}, "scoring must be"),
    ):
        with pytest.raises(KernelArgumentError, match=rf"\[RoutedNetwork\] {message}"):
            kernels.RoutedNetwork(**{**good, **wrong})
