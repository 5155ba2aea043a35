"""Packing keeps every value of every published format, bit for bit, and the layout stays the one that caches hold."""

from __future__ import annotations

import hashlib
import mmap
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finback import kernels
from finback.errors import KernelArgumentError
from finback.kernels import Matrix, pack, packed_bytes, take_rows, unpack
from finback.weights.formats import FORMATS
from tests.kernels.packed import FORMAT_NAMES, INTEGER_FORMATS, published, shapes


def bits(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return values.view(np.uint32)


@pytest.mark.parametrize("format", FORMAT_NAMES)
@pytest.mark.parametrize("threads", [1, 3])
def test_values_survive(rng: np.random.Generator, format: str, threads: int) -> None:
    kernels.set_threads(threads)
    for rows, cols in shapes(format):
        for experts in (1, 3):
            w = published(rng, format, rows, cols, experts)
            for e in range(experts):
                assert np.array_equal(bits(unpack(w.matrix, expert=e)), bits(w.values[e]))


@pytest.mark.parametrize("format", FORMAT_NAMES)
def test_every_byte_value_survives(rng: np.random.Generator, format: str) -> None:
    """Blocks of any bytes at all, also scales that are zero, subnormal, infinite or NaN."""
    rows, cols = 16, 512
    w = published(rng, format, rows, cols)
    w.source = rng.integers(0, 256, len(w.source), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = w.values[0]
    actual = unpack(w.matrix)
    both_nan = np.isnan(actual) & np.isnan(expected)
    assert np.array_equal(bits(actual)[~both_nan], bits(expected)[~both_nan])


@pytest.mark.parametrize("format", FORMAT_NAMES)
def test_take_rows(rng: np.random.Generator, format: str) -> None:
    w = published(rng, format, 40, 512, experts=2)
    ids = np.array([0, 39, 7, 8, 8, 15, 16, 39], np.int64)
    assert np.array_equal(bits(take_rows(w.matrix, ids)), bits(w.values[0][ids]))
    assert take_rows(w.matrix, ids[:0]).shape == (0, 512)


@pytest.mark.parametrize("format", INTEGER_FORMATS)
def test_integer_formats_take_their_published_bytes(format: str) -> None:
    info = FORMATS[format]
    assert packed_bytes(format, 16, 1024, 5) == info.nbytes((5, 16, 1024))
    assert packed_bytes(format, 17, 1024) == info.nbytes((32, 1024))  # rows padded to pairs of 8


def test_fill_an_array(rng: np.random.Generator) -> None:
    w = published(rng, "q4_k", 24, 256, experts=2)
    area = np.zeros(100 + packed_bytes("q4_k", 24, 256, 2), np.uint8)
    result = pack("q4_k", w.source, 24, 256, experts=2, out=area[100:])
    assert np.shares_memory(result, area)
    assert np.array_equal(area[100:], w.pack())
    assert not area[:100].any()


def test_matrix_keeps_read_only_bytes_alive(rng: np.random.Generator) -> None:
    w = published(rng, "q8_0", 9, 64)
    data = w.pack()
    data.flags.writeable = False
    m = Matrix("q8_0", 9, 64, data)
    assert m.data is data
    del data
    assert (m.format, m.rows, m.cols, m.experts, m.nbytes) == ("q8_0", 9, 64, 1, packed_bytes("q8_0", 9, 64))
    assert repr(m) == "Matrix(q8_0, 9 x 64)"
    assert np.array_equal(unpack(m), w.values[0])


# Caches on disk hold this layout: a digest that changes needs a new layout version in finback.weights.pack.
DIGESTS = {
    "f32": "072926ecbcb5666b", "f16": "da6c94e2071a1f2b", "bf16": "da6c94e2071a1f2b",
    "f8_e4m3": "5f0d61d5a0261a87", "q4_0": "d7624d59845be229", "q4_1": "d4def18ae54b8eaf",
    "q5_0": "5a6166befd8acb77", "q5_1": "206d08c0b628a24d", "q8_0": "f11940fb10854821",
    "q2_k": "30d2be2ff093a3d5", "q3_k": "f6601ac567d1b347", "q4_k": "9a7dd0deb506a68e",
    "q5_k": "6542742540408413", "q6_k": "a77c001c6c24672b", "mxfp4": "b1bbbdbdb0a5a683",
}  # fmt: skip


@pytest.mark.parametrize("format", FORMAT_NAMES)
def test_layout_is_stable(format: str) -> None:
    rows, cols = 12, 512
    count = FORMATS[format].nbytes((rows, cols))
    source = (np.arange(count, dtype=np.uint64) * 2654435761 >> np.uint64(7)).astype(np.uint8)
    scales = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) if format == "f8_e4m3" else None
    tiles = pack(format, source, rows, cols, scales=scales)
    assert hashlib.sha256(tiles.tobytes()).hexdigest()[:16] == DIGESTS[format]


NO_BYTES = np.zeros(0, np.uint8)
BAD_CALLS = {
    "unknown format": lambda: packed_bytes("q9_9", 8, 32),
    "no rows": lambda: packed_bytes("q4_0", 0, 32),
    "negative cols": lambda: packed_bytes("q4_0", 8, -32),
    "no experts": lambda: packed_bytes("q4_0", 8, 32, 0),
    "half a block": lambda: packed_bytes("q4_k", 8, 128),
    "overflow": lambda: packed_bytes("f32", 2**31, 2**31, 2**31),
    "source too short": lambda: pack("q4_0", NO_BYTES, 8, 32),
    "source of another type": lambda: pack("q4_0", np.zeros(144, np.int8), 8, 32),
    "source of another rank": lambda: pack("q4_0", np.zeros((8, 18), np.uint8), 8, 32),
    "source with gaps": lambda: pack("q4_0", np.zeros(288, np.uint8)[::2], 8, 32),
    "fp8 without scales": lambda: pack("f8_e4m3", np.zeros(64, np.uint8), 8, 8),
    "fp8 scales too few": lambda: pack("f8_e4m3", np.zeros(64, np.uint8), 8, 8, scales=np.zeros((7, 1), np.float32)),
    "scales for q4_0": lambda: pack("q4_0", np.zeros(144, np.uint8), 8, 32, scales=np.zeros((8, 1), np.float32)),
    "out too short": lambda: pack("q4_0", np.zeros(144, np.uint8), 8, 32, out=np.zeros(143, np.uint8)),
    "matrix too short": lambda: Matrix("q4_0", 9, 32, np.zeros(144, np.uint8)),
    "matrix too long": lambda: Matrix("q4_0", 8, 32, np.zeros(145, np.uint8)),
    "matrix at an odd address": lambda: Matrix("q4_0", 8, 32, np.zeros(147, np.uint8)[3:]),
    "matrix of a list": lambda: Matrix("q4_0", 8, 32, [0] * 144),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_arguments(call: Any) -> None:
    with pytest.raises(KernelArgumentError, match=r"^\["):
        call()


def test_out_that_is_read_only() -> None:
    out = np.zeros(144, np.uint8)
    out.flags.writeable = False
    with pytest.raises((KernelArgumentError, TypeError)):
        pack("q4_0", np.zeros(144, np.uint8), 8, 32, out=out)


@pytest.mark.parametrize("id", [-1, 9, 2**62, -(2**63)])
def test_rows_out_of_range(rng: np.random.Generator, id: int) -> None:
    m = published(rng, "q4_0", 9, 32).matrix
    with pytest.raises(KernelArgumentError, match=r"ids\[1\] must be from 0 to 8"):
        take_rows(m, np.array([0, id], np.int64))
    with pytest.raises(KernelArgumentError, match="expert"):
        unpack(m, expert=1)
    with pytest.raises(KernelArgumentError, match="expert"):
        unpack(m, expert=-1)


@pytest.mark.parametrize("size", [0, 1, 4095, 9_000_001])
def test_a_mapped_file_is_brought_in(tmp_path: Path, size: int) -> None:
    """Every page of the mapping is the process's own afterwards; the view need not begin on a page."""
    path = tmp_path / "pack"
    path.write_bytes(bytes(size + 1))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        view = np.frombuffer(mapping, np.uint8)[1:]
        kernels.bring_in(view)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        assert not any(view[::4096])
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 50  # 140 if nobody brings them in
        del view


def test_bring_in_wants_bytes() -> None:
    with pytest.raises(KernelArgumentError, match="data must be uint8"):
        kernels.bring_in(np.zeros(3, np.float32))  # type: ignore[arg-type]
