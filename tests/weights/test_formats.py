"""The format table, the meaning of every block, and the tolerance of products."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from finback import kernels
from finback.errors import MalformedFile, UnsupportedModel
from finback.weights import formats
from finback.weights.formats import BY_GGUF_ID, BY_SAFETENSORS_DTYPE, FORMATS, MATRIX_FORMATS, dequantize
from tests.vectors.blocks.make import FORMATS as GOLDEN_FORMATS
from tests.vectors.blocks.make import sample_blocks
from tests.weights.tiny import block_fp8
from tests.weights.writers import GGUF_TYPES, bf16, random_blocks

Array = npt.NDArray[Any]
INTEGER_FORMATS = tuple(name for name in MATRIX_FORMATS if FORMATS[name].activation == "int8")


@pytest.fixture(scope="module")
def golden() -> dict[str, Array]:
    path = Path(__file__).parents[1] / "vectors" / "blocks" / "blocks.npz"
    with np.load(path) as file:
        return dict(file)


def same_bits(a: Array, b: Array) -> bool:
    """Equal float32 bits; any NaN equals any NaN."""
    both_nan = np.isnan(a) & np.isnan(b)
    return a.shape == b.shape and bool(np.all((a.view(np.uint32) == b.view(np.uint32)) | both_nan))


def test_table_agrees_with_the_published_sizes() -> None:
    assert set(BY_GGUF_ID) == {gguf_id for gguf_id, _, _ in GGUF_TYPES.values()}
    for name, (gguf_id, elements, block_bytes) in GGUF_TYPES.items():
        info = BY_GGUF_ID[gguf_id]
        assert (info.name, info.block_elements, info.block_bytes) == (name.lower(), elements, block_bytes)


def test_table_has_every_format_of_the_kernels() -> None:
    assert set(MATRIX_FORMATS) == {
        *("f32", "f16", "bf16", "f8_e4m3", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"),
        *("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "mxfp4"),
    }
    assert {"F32", "F16", "BF16", "F8_E4M3", "F8_E8M0", "I8", "U8", "I32", "I64"} <= set(BY_SAFETENSORS_DTYPE)
    assert not {16, 23, 34} & set(BY_GGUF_ID)


def test_sizes_of_tensors() -> None:
    assert FORMATS["q4_k"].nbytes((3, 2, 512)) == 3 * 2 * 2 * 144
    assert FORMATS["bf16"].nbytes(()) == 2
    with pytest.raises(MalformedFile, match="whole blocks of q8_0"):
        FORMATS["q8_0"].nbytes((4, 33))


@pytest.mark.parametrize("name", GOLDEN_FORMATS)
def test_dequantize_golden(name: str, golden: dict[str, Array]) -> None:
    values = golden[f"{name}.values"]
    assert values.size >= 15 * GGUF_TYPES[name][1]
    assert same_bits(dequantize(name.lower(), golden[f"{name}.bytes"], values.shape), values)


@pytest.mark.parity
@pytest.mark.parametrize("name", GOLDEN_FORMATS)
def test_dequantize_matches_gguf(name: str) -> None:
    import gguf

    blocks = sample_blocks(name, np.random.default_rng(), 2000)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
    assert same_bits(dequantize(name.lower(), blocks, expected.shape), expected)


@pytest.mark.parity
@pytest.mark.parametrize(("name", "torch_name"), [("f8_e4m3", "float8_e4m3fn"), ("f8_e8m0", "float8_e8m0fnu")])
def test_float8_matches_torch(name: str, torch_name: str) -> None:
    import torch

    codes = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(codes).view(getattr(torch, torch_name)).float().numpy()
    assert same_bits(dequantize(name, codes, (256,)), expected)


def test_float8_by_hand() -> None:
    codes = np.array([0x00, 0x80, 0x01, 0x08, 0x38, 0xB8, 0x7E, 0xFE, 0x7F], np.uint8)
    expected = np.array([0, -0.0, 2**-9, 2**-6, 1, -1, 448, -448, np.nan], np.float32)
    assert same_bits(dequantize("f8_e4m3", codes, (9,)), expected)
    powers = dequantize("f8_e8m0", np.array([0, 1, 127, 128, 254, 255], np.uint8), (6,))
    assert same_bits(powers, np.array([2.0**-127, 2.0**-126, 1, 2, 2.0**127, np.nan], np.float32))


def test_plain_numbers() -> None:
    assert dequantize("i8", np.array([255, 1], np.uint8), (2,)).tolist() == [-1, 1]
    assert dequantize("i32", np.array([-5], "<i4"), (1, 1)).tolist() == [[-5]]
    assert dequantize("f64", np.array([0.5], "<f8"), ()).shape == ()


def test_dequantize_refuses_what_does_not_fit() -> None:
    with pytest.raises(MalformedFile, match=r"takes 36 bytes, not 18"):
        dequantize("q4_0", np.zeros(18, np.uint8), (2, 32))
    with pytest.raises(UnsupportedModel, match="bool"):
        dequantize("bool", np.zeros(1, np.uint8), (1,))


# --- tolerance: products as the kernels define them, in float64 but for the rounding of activations


def int8_activations(x: Array) -> Array:
    """x as a kernel sees it: int8 per group of 32, times the group's step."""
    grouped = x.reshape(x.shape[0], -1, formats.GROUP).astype(np.float64)
    step = np.abs(grouped).max(axis=-1, keepdims=True) / 127
    return (np.rint(grouped / np.where(step == 0, 1, step)) * step).reshape(x.shape)


def random_published(name: str, rows: int, cols: int, rng: np.random.Generator) -> Array:
    """The bytes of random weights."""
    if name == "f8_e4m3":
        raw = block_fp8(rng.normal(0, 0.05, (rows, cols)).astype(np.float32))[0]
    else:
        raw = random_blocks(name.upper(), (rows, cols), rng, scale=0.05)
    return np.frombuffer(raw.data, np.uint8)


def weights_of(name: str, rows: int, cols: int, rng: np.random.Generator) -> Array:
    return dequantize(name, random_published(name, rows, cols, rng), (rows, cols))


@pytest.mark.parametrize("name", INTEGER_FORMATS)
@pytest.mark.parametrize("cols", [256, 1024])
def test_rounded_activations_are_within_the_limit(name: str, cols: int, rng: np.random.Generator) -> None:
    w, x = weights_of(name, 64, cols, rng), rng.normal(0, 1, (16, cols)).astype(np.float32)
    error = np.abs(int8_activations(x) @ w.T.astype(np.float64) - x.astype(np.float64) @ w.T)
    limit = formats.product_limit(name, w, x)
    assert limit.shape == (16, 64)
    assert np.all(error <= limit)
    assert np.all(limit <= formats.product_ceiling(name, w, x))
    # Tight: a third of the allowance would not do, and the allowance is a small part of a typical product.
    assert np.any(error > limit / 3)
    assert np.median(limit) < 0.05 * np.linalg.norm(w, axis=1).mean()


@pytest.mark.parametrize("name", INTEGER_FORMATS)
def test_a_wrong_group_is_outside_the_limit(name: str, rng: np.random.Generator) -> None:
    w, x = weights_of(name, 96, 256, rng), rng.normal(0, 1, (16, 256)).astype(np.float32)
    wrong = w.copy()
    wrong[:, 64:96] = w[:, 95:63:-1]  # one group of 32 in the wrong order
    error = np.abs((wrong.astype(np.float64) - w) @ x.T.astype(np.float64)).T
    assert np.mean(error > formats.product_limit(name, w, x)) > 0.5


@pytest.mark.parametrize("name", [n for n in MATRIX_FORMATS if n not in INTEGER_FORMATS])
def test_float_formats_allow_only_the_rounding_of_sums(name: str, rng: np.random.Generator) -> None:
    w, x = weights_of(name, 32, 2048, rng), rng.normal(0, 1, (8, 2048)).astype(np.float32)
    error = np.abs((x @ w.T).astype(np.float64) - x.astype(np.float64) @ w.T.astype(np.float64))
    limit = formats.product_limit(name, w, x)
    assert np.all(error <= limit)
    assert np.all(limit <= 6e-6 * (np.abs(x) @ np.abs(w).T))
    assert np.all(limit <= formats.product_ceiling(name, w, x))


def test_the_ceiling_holds_for_activations_chosen_against_it() -> None:
    x = np.full((1, 256), 0.5, np.float32)
    x[:, ::32] = 127  # steps of one: every 0.5 is rounded to 0, always the same way
    w = np.ones((1, 256), np.float32)
    error = np.abs(int8_activations(x) @ w.T - x @ w.T)
    assert error > formats.product_limit("q8_0", w, x)
    assert error <= formats.product_ceiling("q8_0", w, x)


@pytest.mark.parametrize("name", MATRIX_FORMATS)
@pytest.mark.parametrize("isa", kernels.available_isas())
def test_kernels_keep_all_three_bounds(name: str, isa: str, rng: np.random.Generator) -> None:
    rows, cols = 24, 768
    raw = random_published(name, rows, cols, rng)
    w = dequantize(name, raw, (rows, cols))
    unit_scales = np.ones((rows, cols // 128), np.float32) if name == "f8_e4m3" else None
    matrix = kernels.Matrix(name, rows, cols, kernels.pack(name, raw, rows, cols, scales=unit_scales))
    before = kernels.select_isa(isa)
    try:
        for x in activations(8, cols, rng):
            error = np.abs(kernels.linear(x, [matrix])[0] - x.astype(np.float64) @ w.T.astype(np.float64))
            norms = np.linalg.norm(x.astype(np.float64), axis=1)[:, None] * np.linalg.norm(w.astype(np.float64), axis=1)
            assert np.all(error <= formats.product_limit(name, w, x))
            assert np.all(error <= formats.product_ceiling(name, w, x))
            assert np.all(error <= FORMATS[name].tolerance * norms)
    finally:
        kernels.select_isa(before)


def activations(n: int, cols: int, rng: np.random.Generator) -> Iterator[Array]:
    """Normal, heavy-tailed, with outlier channels, gated, positive, and very small ones."""
    normal = rng.normal(0, 1, (n, cols)).astype(np.float32)
    yield normal
    yield rng.standard_t(2, (n, cols)).astype(np.float32)
    yield np.where(np.arange(cols) % 97 == 0, 100 * normal, normal)
    yield normal / (1 + np.exp(-normal)) * rng.normal(0, 1, (n, cols)).astype(np.float32)
    yield np.abs(normal)
    yield normal * np.float32(1e-28)


def test_limits_need_a_format_that_kernels_have() -> None:
    with pytest.raises(UnsupportedModel, match="no kernel"):
        formats.product_limit("i64", np.zeros((1, 32)), np.zeros((1, 32)))


def test_bf16_writer_rounds_to_nearest() -> None:
    raw = bf16(np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-9], np.float32))
    assert dequantize("bf16", np.frombuffer(raw.data, np.uint8), (3,)).tolist() == [1.0, 1.0, 1 + 2**-7]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Another seed for every test, the same in every run."""
    return np.random.default_rng(list(request.node.name.encode()))
