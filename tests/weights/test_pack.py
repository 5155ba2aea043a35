"""Packing: published values survive bit for bit, the cache appears whole or not at all, narrower formats are honest."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finback import kernels
from finback.errors import ConfigError, MalformedFile, ModelError, ModelTooLarge
from finback.kernels import Matrix
from finback.weights import packfile
from finback.weights.bind import bind
from finback.weights.checkpoint import Checkpoint, open_checkpoint
from finback.weights.config import ModelConfig
from finback.weights.pack import Weights, describe, load_weights, pack_path, packed_bytes
from tests.weights.test_bind import fp8_folder, values
from tests.weights.tiny import (
    FAMILIES,
    gguf_metadata,
    gguf_tensors,
    tiny_config,
    tiny_tensors,
    write_tiny_folder,
    write_tiny_gguf,
)
from tests.weights.writers import Raw, write_gguf, write_safetensors_folder

WIDE = {
    "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 1, "vocab_size": 272,
}  # fmt: skip
BLOCK_FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4")


def opened(path: Path) -> tuple[Checkpoint, ModelConfig]:
    checkpoint = open_checkpoint(path)
    return checkpoint, ModelConfig.from_checkpoint(checkpoint)


def load(path: Path, cache: Path, **options: Any) -> Weights:
    checkpoint, config = opened(path)
    return load_weights(checkpoint, config, cache_dir=cache, **options)


def unpacked(weight: Matrix | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if isinstance(weight, np.ndarray):
        return weight
    return np.stack([kernels.unpack(weight, expert=expert) for expert in range(weight.experts)])


def published(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every field, dequantised from the file as its source says; FP8 scales applied block by block."""
    checkpoint, config = opened(path)
    found = {}
    for field, source in bind(checkpoint, config).sources.items():
        found[field] = values(checkpoint, source)
        if source.fp8_block is not None:
            found[field] = found[field] * _block_scales(checkpoint, source)
    return found


def _block_scales(checkpoint: Checkpoint, source: Any) -> np.ndarray[Any, Any]:
    scales = []
    for piece in source.pieces:
        name = piece.tensor.replace(".weight", ".weight_scale_inv")
        info, whole = checkpoint.tensors[name], checkpoint.tensors[piece.tensor].shape
        if info.format == "f32":
            grid = checkpoint.read(name).view(np.float32).reshape(info.shape or (1, 1))
        else:
            grid = (2.0 ** (checkpoint.read(name).astype(float) - 127)).reshape(info.shape).astype(np.float32)
        rows, cols = source.fp8_block
        each = np.kron(np.atleast_2d(grid), np.ones((rows, cols), np.float32))[: whole[0], : whole[1]]
        each = each[piece.start : piece.stop]
        scales.append(each.T if source.transpose else each)
    return np.stack(scales)


def check_round_trip(path: Path, cache: Path) -> Weights:
    weights, expected = load(path, cache), published(path)
    assert set(weights) == set(expected)
    for field, wanted in expected.items():
        actual = unpacked(weights[field])
        assert actual.dtype == wanted.dtype == np.float32
        np.testing.assert_array_equal(actual.reshape(wanted.shape), wanted, err_msg=field)
    return weights


# ---- values


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F8"])
def test_hugging_face_round_trip(tmp_path: Path, family: str, dtype: str) -> None:
    weights = check_round_trip(write_tiny_folder(tmp_path / "m", family, dtype=dtype), tmp_path / "cache")
    kept = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F8": "f8_e4m3"}[dtype]
    assert isinstance(weights["layers.0.attn.o"], Matrix)
    assert weights["layers.0.attn.o"].format == kept


@pytest.mark.parametrize("family", ["qwen2", "deepseek_v3"])
@pytest.mark.parametrize("format", ["F16", "BF16", "Q4_0", "Q8_0"])
def test_gguf_round_trip(tmp_path: Path, family: str, format: str) -> None:
    check_round_trip(write_tiny_gguf(tmp_path / "m.gguf", family, format=format), tmp_path / "cache")


@pytest.mark.parametrize("format", BLOCK_FORMATS)
def test_every_block_format_keeps_its_values(tmp_path: Path, format: str) -> None:
    """Llama, so that whole quantised rows move: q and k come out of their permutation."""
    path = write_tiny_gguf(tmp_path / "m.gguf", "llama", format=format, **WIDE)
    weights = check_round_trip(path, tmp_path / "cache")
    assert weights["layers.0.attn.q"].format == format.lower()  # type: ignore[union-attr]
    assert {line.tile for line in weights.report} == {format.lower(), "f32"}


def test_unpermuted_rows_are_those_of_hugging_face(tmp_path: Path) -> None:
    gguf = load(write_tiny_gguf(tmp_path / "m.gguf", "llama"), tmp_path / "cache")
    hf = load(write_tiny_folder(tmp_path / "m", "llama"), tmp_path / "cache")
    for field in hf:
        np.testing.assert_array_equal(unpacked(gguf[field]), unpacked(hf[field]), err_msg=field)


@pytest.mark.parametrize("old_mla", [False, True])
def test_latent_halves_are_those_of_hugging_face(tmp_path: Path, old_mla: bool) -> None:
    gguf = load(write_tiny_gguf(tmp_path / "m.gguf", "deepseek_v2", old_mla=old_mla), tmp_path / "cache")
    hf = load(write_tiny_folder(tmp_path / "m", "deepseek_v2"), tmp_path / "cache")
    assert set(gguf) == set(hf)
    for field in hf:
        np.testing.assert_array_equal(unpacked(gguf[field]), unpacked(hf[field]), err_msg=field)


def test_both_orientations_of_the_key_projection_agree(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", "deepseek_v2", format="Q8_0", old_mla=True)
    weights = load(path, tmp_path / "cache")
    k_up, k_absorb = (unpacked(weights[f"layers.0.attn.{name}"]) for name in ("k_up", "k_absorb"))
    np.testing.assert_array_equal(k_up.transpose(0, 2, 1), k_absorb)


def test_rows_are_cut_into_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small chunks, partial last chunk, heads whose width is no multiple of the tile's rows: the same bytes."""
    shape = {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 24, "hidden_size": 64}
    path = write_tiny_gguf(tmp_path / "m.gguf", "llama", format="Q8_0", **shape)
    whole = check_round_trip(path, tmp_path / "whole")
    monkeypatch.setattr("finback.weights.pack.CHUNK_ELEMENTS", 1)
    monkeypatch.setattr("finback.weights.pack.CHUNK_ROWS", 16)
    cut = check_round_trip(path, tmp_path / "cut")
    for field, weight in whole.items():
        if isinstance(weight, Matrix):
            np.testing.assert_array_equal(weight.data, cut[field].data, err_msg=field)  # type: ignore[union-attr]


@pytest.mark.parametrize("block", [(16, 64), (16, 16), (48, 48), (24, 128)])
def test_fp8_blocks_of_any_size(tmp_path: Path, block: tuple[int, int]) -> None:
    grid = (-(-64 // block[0]), -(-64 // block[1]))
    scales = np.random.default_rng(0).uniform(0.5, 2, grid).astype(np.float32)
    folder = fp8_folder(tmp_path / "m", block=block, scales=scales, codes=_random_codes(64, 64))
    check_round_trip(folder, tmp_path / "cache")


def test_fp8_wider_than_one_scale_block(tmp_path: Path) -> None:
    """Several scales per row in the tile, partial blocks at both edges."""
    rows, cols = 200, 320
    config = tiny_config("llama", hidden_size=cols, num_attention_heads=5, num_key_value_heads=5, head_dim=40)
    config |= {"num_hidden_layers": 1, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    tensors: dict[str, Any] = dict(tiny_tensors(config))
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = Raw("F8_E4M3", (rows, cols), _random_codes(rows, cols).tobytes())
    tensors[name.replace(".weight", ".weight_scale_inv")] = Raw(
        "F8_E8M0", (2, 3), bytes([120, 127, 130, 119, 121, 125])
    )
    weights = check_round_trip(write_safetensors_folder(tmp_path / "m", config, tensors), tmp_path / "cache")
    assert weights["layers.0.attn.q"].format == "f8_e4m3"  # type: ignore[union-attr]


def _random_codes(rows: int, cols: int) -> np.ndarray[Any, Any]:
    codes = np.random.default_rng(3).integers(0, 256, (rows, cols), dtype=np.uint8)
    return np.where(codes & 0x7F == 0x7F, 0, codes).astype(np.uint8)


# ---- numbers that are not


def _broken(tmp_path: Path, format: str, at: int, data: bytes) -> Path:
    """A llama GGUF in which some bytes of a block of attn_v are overwritten."""
    config = tiny_config("llama", **WIDE)
    tensors: dict[str, Any] = dict(gguf_tensors(config, tiny_tensors(config)))
    path = write_tiny_gguf(tmp_path / "sound.gguf", "llama", format=format, **WIDE)
    sound = open_checkpoint(path)
    name = "blk.0.attn_v.weight"
    raw = bytearray(sound.read(name).tobytes())
    raw[at : at + len(data)] = data
    tensors[name] = Raw(format, sound.tensors[name].shape, bytes(raw))
    return write_gguf(tmp_path / "broken.gguf", gguf_metadata(config), tensors)


NAN16, INF16 = b"\x00\x7e", b"\x00\xfc"


@pytest.mark.parametrize(
    ("format", "at", "data"),
    [
        ("F32", 8, np.float32(np.nan).tobytes()),
        ("F32", 8, np.float32(-np.inf).tobytes()),
        ("F16", 6, INF16),
        ("BF16", 6, b"\x80\x7f"),
        ("Q4_0", 0, NAN16),
        ("Q4_1", 2, INF16),
        ("Q5_0", 22, NAN16),
        ("Q5_1", 2, INF16),
        ("Q8_0", 34, INF16),
        ("Q2_K", 82, NAN16),
        ("Q3_K", 108, NAN16),
        ("Q4_K", 2, INF16),
        ("Q5_K", 0, NAN16),
        ("Q6_K", 208, INF16),
        ("MXFP4", 0, b"\xff"),
    ],
)
def test_values_that_are_not_finite_name_their_tensor(tmp_path: Path, format: str, at: int, data: bytes) -> None:
    with pytest.raises(MalformedFile, match=r"blk\.0\.attn_v\.weight"):
        load(_broken(tmp_path, format, at, data), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("scales", [np.full((1, 1), np.nan, np.float32), np.full((1, 1), 1e38, np.float32)])
def test_fp8_scales_that_are_not_finite(tmp_path: Path, scales: np.ndarray[Any, Any]) -> None:
    with pytest.raises(MalformedFile, match="weight_scale_inv"):
        load(fp8_folder(tmp_path / "m", block=(128, 128), scales=scales), tmp_path / "cache")


def test_fp8_values_that_are_not_finite(tmp_path: Path) -> None:
    codes = np.zeros((64, 64), np.uint8)
    codes[5, 7] = 0xFF
    folder = fp8_folder(tmp_path / "m", block=(128, 128), scales=np.ones((1, 1), np.float32), codes=codes)
    with pytest.raises(MalformedFile, match=r"o_proj\.weight"):
        load(folder, tmp_path / "cache")


# ---- narrower formats


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8"])
@pytest.mark.parametrize(("format", "bulk", "limit"), [("q8", "q8_0", 0.01), ("q4", "q4_0", 0.12)])
def test_narrower_formats(tmp_path: Path, dtype: str, format: str, bulk: str, limit: float) -> None:
    path = write_tiny_folder(tmp_path / "m", "deepseek_v3", dtype=dtype)
    weights, exact = load(path, tmp_path / "cache", format=format), published(path)
    lines = {line.field: line for line in weights.report}
    assert lines["layers.1.attn.o"].tile == lines["layers.1.moe.gate"].tile == bulk
    assert lines["embed"].tile == lines["head"].tile == "q8_0"
    assert lines["layers.1.moe.router"].tile == lines["norm"].tile == "f32"
    for field, line in lines.items():
        if line.error is None:
            np.testing.assert_array_equal(unpacked(weights[field]).reshape(exact[field].shape), exact[field])
            continue
        assert line.note == f"quantised, as asked ({format})"
        difference = unpacked(weights[field]) - exact[field]
        measured = np.sqrt(np.square(difference).sum() / np.square(exact[field]).sum())
        assert line.error == pytest.approx(measured, rel=1e-3)
        assert 0 < line.error < limit


def test_rows_that_are_not_whole_blocks_stay(tmp_path: Path) -> None:
    weights = load(write_tiny_folder(tmp_path / "m", "deepseek_v3"), tmp_path / "cache", format="q4")
    line = next(line for line in weights.report if line.field == "layers.0.attn.q_b")  # 24 columns
    assert (line.tile, line.error) == ("f32", None)
    assert "24 columns" in line.note


def test_quantised_models_are_not_quantised_again(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", "qwen2", format="Q8_0")
    with pytest.raises(ConfigError, match="already quantised") as caught:
        load(path, tmp_path / "cache", format="q4")
    assert caught.value.hint is not None


def test_formats_have_packs_of_their_own(tmp_path: Path) -> None:
    path = write_tiny_folder(tmp_path / "m", "llama")
    sizes = [load(path, tmp_path / "cache", format=format).nbytes for format in (None, "q8", "q4")]
    assert len(list((tmp_path / "cache").iterdir())) == 3
    assert sizes[0] > sizes[1] > sizes[2]


# ---- the cache


def test_the_second_load_reads_headers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny_folder(tmp_path / "m", "deepseek_v3")
    first = load(path, tmp_path / "cache")
    monkeypatch.setattr(Checkpoint, "read", lambda *_, **__: pytest.fail("the source was read again"))
    second = load(path, tmp_path / "cache")
    assert first.report == second.report
    for field in first:
        np.testing.assert_array_equal(unpacked(first[field]), unpacked(second[field]))


def test_container_is_aligned_and_sound(tmp_path: Path) -> None:
    path = write_tiny_folder(tmp_path / "m", "deepseek_v3")
    weights = load(path, tmp_path / "cache")
    packed = open_checkpoint(next((tmp_path / "cache").iterdir()))
    assert set(packed.tensors) == set(weights)
    assert all(tensor.offset % 4096 == 0 for tensor in packed.tensors.values())
    checkpoint, config = opened(path)
    assert packed.path == pack_path(checkpoint, config, cache_dir=tmp_path / "cache")
    assert packed_bytes(checkpoint, config) == weights.nbytes == packed.nbytes


def test_progress_is_reported_while_packing_only(tmp_path: Path) -> None:
    path = write_tiny_folder(tmp_path / "m", "llama")
    seen: list[tuple[int, int]] = []
    weights = load(path, tmp_path / "cache", progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (weights.nbytes, weights.nbytes)
    load(path, tmp_path / "cache", progress=lambda *_: pytest.fail("nothing was to be packed"))


def test_weights_cannot_be_written(tmp_path: Path) -> None:
    weights = load(write_tiny_folder(tmp_path / "m", "llama"), tmp_path / "cache")
    norm = weights["norm"]
    assert isinstance(norm, np.ndarray)
    with pytest.raises(ValueError, match="read-only"):
        norm[0] = 1


def test_a_changed_source_is_packed_again_and_replaces_the_old_pack(tmp_path: Path) -> None:
    path = write_tiny_folder(tmp_path / "m", "llama", seed=0)
    old = load(path, tmp_path / "cache")
    before = unpacked(old["embed"]).copy()
    shutil.rmtree(path)
    new = load(write_tiny_folder(path, "llama", seed=1), tmp_path / "cache")
    assert not np.array_equal(unpacked(new["embed"]), before)
    np.testing.assert_array_equal(unpacked(old["embed"]), before)  # still mapped
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("damage", ["truncated", "longer", "header", "empty", "another key"])
def test_damaged_packs_are_made_again(tmp_path: Path, damage: str) -> None:
    path = write_tiny_folder(tmp_path / "m", "llama")
    load(path, tmp_path / "cache")
    pack = next((tmp_path / "cache").iterdir())
    sound = pack.read_bytes()
    at = sound.index(b"finback.key") + 16
    broken = {
        "truncated": sound[:-4096],
        "longer": sound + b"x",
        "header": sound[:20] + b"{{" + sound[22:],
        "empty": b"",
        "another key": sound[:at] + b"0000" + sound[at + 4 :],
    }[damage]
    pack.unlink()  # the first load's mapping stays as it was
    pack.write_bytes(broken)
    check_round_trip(path, tmp_path / "cache")
    assert pack.read_bytes() == sound


def test_describe_packs_nothing_and_knows_what_was_packed(tmp_path: Path) -> None:
    checkpoint, config = opened(write_tiny_folder(tmp_path / "m", "llama"))
    planned = describe(checkpoint, config, format="q4", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert all(line.error is None for line in planned)
    weights = load_weights(checkpoint, config, format="q4", cache_dir=tmp_path / "cache")
    assert describe(checkpoint, config, format="q4", cache_dir=tmp_path / "cache") == weights.report
    assert any(line.error for line in weights.report)
    assert [line.tile for line in planned] == [line.tile for line in weights.report]


def test_no_room_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny_folder(tmp_path / "m", "llama")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))  # type: ignore[attr-defined]
    with pytest.raises(ModelTooLarge, match="free") as caught:
        load(path, tmp_path / "cache")
    assert "FINBACK_HOME" in str(caught.value.hint)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync", "replace"])
@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, ModelTooLarge), (errno.EIO, ModelError)])
def test_disk_errors_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, kind: type[Exception]
) -> None:
    path = write_tiny_folder(tmp_path / "m", "llama")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(packfile.os, call, fail)
        with pytest.raises(kind):
            load(path, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    check_round_trip(path, tmp_path / "cache")


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    path = write_tiny_folder(tmp_path / "m", "llama")
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(ModelError) as caught:
        load(path, tmp_path / "cache")
    assert "FINBACK_HOME" in str(caught.value.hint)


# ---- several processes


def _load_in_child(path: Path, cache: Path, slow: bool, done: Any) -> None:
    if slow:
        original = packfile.PackWriter.write

        def write(self: Any, offset: int, data: Any) -> None:
            original(self, offset, data)
            done.put("writing")
            time.sleep(0.004)

        packfile.PackWriter.write = write  # type: ignore[method-assign]
    weights = load(path, cache)
    done.put(float(sum(unpacked(weight).sum(dtype=np.float64) for weight in weights.values())))


def _start(path: Path, cache: Path, *, slow: bool = False) -> tuple[Any, Any]:
    context = multiprocessing.get_context("spawn")
    done = context.Queue()
    process = context.Process(target=_load_in_child, args=(path, cache, slow, done))
    process.start()
    return process, done


def _result(done: Any) -> float:
    while True:
        found = done.get(timeout=30)
        if found != "writing":
            return float(found)


def test_two_processes_at_once(tmp_path: Path) -> None:
    path, cache = write_tiny_folder(tmp_path / "m", "deepseek_v3"), tmp_path / "cache"
    children = [_start(path, cache, slow=True), _start(path, cache, slow=True)]
    sums = [_result(done) for _, done in children]
    for process, _ in children:
        process.join(30)
        assert process.exitcode == 0
    weights = check_round_trip(path, cache)
    assert sums == [float(sum(unpacked(w).sum(dtype=np.float64) for w in weights.values()))] * 2
    assert [file.suffix for file in cache.iterdir()] == [".safetensors"]


def test_a_killed_packer_leaves_nothing_that_counts(tmp_path: Path) -> None:
    path, cache = write_tiny_folder(tmp_path / "m", "deepseek_v3"), tmp_path / "cache"
    process, done = _start(path, cache, slow=True)
    assert done.get(timeout=30) == "writing"
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert [file.suffix for file in cache.iterdir()] == [".partial"]
    check_round_trip(path, cache)
    assert [file.suffix for file in cache.iterdir()] == [".safetensors"]


def test_partial_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    dead, unrelated = cache / "0123.safetensors.partial", cache / "notes.txt"
    dead.write_bytes(b"x")
    unrelated.write_text("mine")
    load(write_tiny_folder(tmp_path / "m", "llama"), cache)
    assert not dead.exists()
    assert unrelated.exists()
