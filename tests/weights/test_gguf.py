"""The GGUF reader: what it reads right, and every lie that it must refuse with a typed error before believing it."""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finback.errors import FinbackError, MalformedFile, ModelError, UnknownModel, UnsupportedModel
from finback.weights import gguf
from finback.weights.checkpoint import open_checkpoint
from tests.weights.tiny import write_tiny_gguf
from tests.weights.writers import (
    GGUF_TYPES,
    Raw,
    Typed,
    gguf_header,
    gguf_string,
    gguf_tensor_info,
    gguf_value,
    random_blocks,
    write_gguf,
    write_gguf_split,
)

ARCH = {"general.architecture": "llama"}
VECTOR = np.arange(8, dtype=np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def write_raw(path: Path, head: bytes, data: bytes = bytes(4096)) -> Path:
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def write_infos(path: Path, *infos: bytes, metadata: Mapping[str, Any] = ARCH, data: bytes = bytes(4096)) -> Path:
    return write_raw(path, gguf_header(metadata, infos), data)


def refuse(path: Path, match: str, error: type[FinbackError] = MalformedFile) -> None:
    with pytest.raises(error, match=match):
        open_checkpoint(path)


# --- what is read


def test_metadata_of_every_type(path: Path) -> None:
    numbers = {kind: Typed(kind, 7) for kind in ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64")}
    values = {
        **numbers,
        "f32": Typed("f32", 0.5),
        "f64": Typed("f64", 0.1),
        "no": False,
        "text": "grüße\n",
        "empty": "",
    }
    arrays = {
        "strings": ["a", "", "ü"],
        "ints": Typed("array:i32", [-1, 2]),
        "floats": Typed("array:f32", [0.5]),
        "flags": Typed("array:bool", [True, False]),
        "none": Typed("array:u8", []),
        "no strings": Typed("array:str", []),
    }
    checkpoint = open_checkpoint(write_gguf(path, {**values, **arrays}, {}))
    expected = {
        name: value.value if isinstance(value, Typed) else value for name, value in {**values, **arrays}.items()
    }
    assert dict(checkpoint.metadata) == expected
    assert [type(checkpoint.metadata[key]) for key in ("u8", "f32", "no", "ints")] == [int, float, bool, list]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [32, 1, 4096])
def test_tensors_of_every_format(path: Path, version: int, alignment: int) -> None:
    rng = np.random.default_rng(1)
    wanted = {name: random_blocks(name, (2, 3, 256), rng) for name in GGUF_TYPES if not name.startswith("I")}
    wanted["I32"] = Raw("I32", (5,), np.arange(5, dtype="<i4").tobytes())
    checkpoint = open_checkpoint(write_gguf(path, ARCH, wanted, alignment=alignment, version=version))
    assert set(checkpoint.tensors) == set(wanted)
    for name, raw in wanted.items():
        info = checkpoint.tensors[name]
        assert (info.format, info.shape, info.offset % alignment) == (name.lower(), raw.shape, 0)
        assert checkpoint.read(name).tobytes() == raw.data


def test_no_tensors_and_no_padding_is_a_vocabulary(path: Path) -> None:
    path.write_bytes(gguf_header({**ARCH, "tokenizer.ggml.tokens": ["a", "b"]}, []))
    assert open_checkpoint(path).metadata["tokenizer.ggml.tokens"] == ["a", "b"]


def test_a_file_without_the_extension_is_known_by_its_magic(tmp_path: Path) -> None:
    assert open_checkpoint(write_gguf(tmp_path / "sha256-abc", ARCH, {"a": VECTOR})).kind == "gguf"


def test_a_large_vocabulary_is_read_in_a_fraction_of_a_second(path: Path) -> None:
    count = 150_000
    merges = b"".join(gguf_string(f"Ġ{i} {i}") for i in range(count))
    tokens = b"".join(gguf_string(f"Ġ{i}") for i in range(count))
    array = struct.pack("<IIQ", 9, 8, count)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
    path.write_bytes(head + gguf_string("tokens") + array + tokens + gguf_string("merges") + array + merges)
    start = time.process_time()
    metadata = open_checkpoint(path).metadata
    assert time.process_time() - start < 1
    assert (len(metadata["tokens"]), metadata["merges"][-1]) == (count, "Ġ149999 149999")


def test_only_the_header_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(path, ARCH, {"a": np.zeros(4 << 20, np.float32)})
    read: list[int] = []
    original = gguf.fill
    monkeypatch.setattr(gguf, "fill", lambda fd, at, out, path: (read.append(out.nbytes), original(fd, at, out, path)))
    open_checkpoint(path)
    assert sum(read) <= gguf.FIRST_READ_BYTES


def test_the_size_of_the_first_read_does_not_matter(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffer grows inside lengths, strings and numbers alike."""
    values = {**ARCH, "strings": ["", "ab", "cdefgh"] * 3, "numbers": [1, 2, 3], "last": "x" * 40}
    write_gguf(path, values, {"t": VECTOR})
    for first in range(1, 120):
        monkeypatch.setattr(gguf, "FIRST_READ_BYTES", first)
        checkpoint = open_checkpoint(path)
        assert dict(checkpoint.metadata) == values
        assert checkpoint.read("t").tobytes() == VECTOR.tobytes()


# --- attacks: the header


def test_cut_at_every_byte_of_the_header(path: Path) -> None:
    whole = write_gguf(path, {**ARCH, "list": ["a", "bc"], "n": [1, 2]}, {"t": VECTOR}).read_bytes()
    assert len(whole) < 400
    open_checkpoint(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(MalformedFile):
            open_checkpoint(path)


@pytest.mark.parametrize("version", [0, 1, 4, 1 << 31])
def test_versions(path: Path, version: int) -> None:
    write_raw(path, gguf_header(ARCH, [], version=version))
    refuse(path, "big-endian" if version & 0xFFFF == 0 else f"version {version};", UnsupportedModel)


def test_big_endian(path: Path) -> None:
    write_raw(path, b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    refuse(path, "big-endian", UnsupportedModel)


def test_magic(path: Path) -> None:
    write_raw(path, b"GGML" + bytes(64))
    refuse(path, "not a GGUF file")


@pytest.mark.parametrize("count", [2, 1000, 1 << 20, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("field", ["tensors", "metadata keys"])
def test_counts_that_lie(path: Path, count: int, field: str) -> None:
    counts = (count, 0) if field == "tensors" else (0, count)
    write_raw(path, b"GGUF" + struct.pack("<IQQ", 3, *counts), b"")
    refuse(path, f"claims {count} {field}")


@pytest.mark.parametrize("length", [100, 1 << 20, 1 << 40, 1 << 63, (1 << 64) - 1])
def test_string_lengths_that_lie(path: Path, length: int) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    lie = struct.pack("<Q", length) + b"short"
    write_raw(path, head + lie, b"")
    refuse(path, "more than it can hold")
    write_raw(path, head + gguf_string("key") + struct.pack("<I", 8) + lie, b"")
    refuse(path, "more than it can hold")
    write_raw(path, head + gguf_string("key") + struct.pack("<IIQ", 9, 8, 1) + lie, b"")
    refuse(path, "inside the value of 'key'|longer than")


@pytest.mark.parametrize("kind", [0, 5, 7, 8, 10])
@pytest.mark.parametrize("count", [600, 1 << 32, 1 << 63, (1 << 64) - 1])
def test_array_lengths_that_lie(path: Path, kind: int, count: int) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_string("key") + struct.pack("<IIQ", 9, kind, count)
    write_raw(path, head, bytes(500))
    refuse(path, f"claims {count} .*'key'")


def test_strings_beyond_the_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "MAX_STRINGS", 5)
    write_gguf(path, {"a": ["x"] * 3, "b": ["x"] * 3}, {})
    refuse(path, "claims 3 strings")


def test_a_sparse_file_of_ten_terabytes(path: Path) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_string("key") + struct.pack("<IIQ", 9, 8, 1 << 38)
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(10 << 40)
    refuse(path, "claims")
    path.write_bytes(head[:-8] + struct.pack("<Q", 100) + struct.pack("<Q", 1 << 40))
    with path.open("r+b") as file:
        file.truncate(10 << 40)
    refuse(path, "longer than")


def test_arrays_of_arrays(path: Path) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_string("key")
    write_raw(path, head + struct.pack("<IIQ", 9, 9, 1) + gguf_value([1]))
    refuse(path, "array of arrays")


@pytest.mark.parametrize("kind", [13, 255, 1 << 31])
def test_unknown_value_types(path: Path, kind: int) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_string("key")
    write_raw(path, head + struct.pack("<I", kind))
    refuse(path, f"unknown type {kind}")
    write_raw(path, head + struct.pack("<IIQ", 9, kind, 3))
    refuse(path, f"unknown type {kind}")


def test_a_boolean_that_is_neither(path: Path) -> None:
    write_raw(path, b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_string("key") + struct.pack("<IB", 7, 2))
    refuse(path, "neither true nor false")


@pytest.mark.parametrize("key", [b"", b"\xff\xfe", b"a\0b", b"k" * 600, "\u202e".encode()])
def test_keys_that_cannot_be_names(path: Path, key: bytes) -> None:
    write_raw(path, b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_string(key) + gguf_value(1))
    refuse(path, "cannot be the name|UTF-8")


def test_text_that_is_not_utf8(path: Path) -> None:
    write_gguf(path, {"key": Typed("str", b"\xff")}, {})
    refuse(path, "'key' is not UTF-8")
    write_gguf(path, {"key": Typed("array:str", [b"ok", b"\xc3"])}, {})
    refuse(path, "a string in the value of 'key' is not UTF-8")


def test_a_key_twice(path: Path) -> None:
    pair = gguf_string("key") + gguf_value(1)
    write_raw(path, b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + pair + pair)
    refuse(path, "'key' appears twice")


@pytest.mark.parametrize("value", [0, 3, 48, 1 << 21, 1 << 31, Typed("i32", -32), "32", 32.0, True, [32]])
def test_alignment_must_be_a_power_of_two(path: Path, value: Any) -> None:
    write_infos(path, metadata={"general.alignment": value})
    refuse(path, "alignment must be a power of two")


# --- attacks: the tensors


def test_a_tensor_twice(path: Path) -> None:
    write_infos(path, gguf_tensor_info("t", [8], 0, 0), gguf_tensor_info("t", [8], 0, 32))
    refuse(path, "'t' appears twice")


@pytest.mark.parametrize("offset", [0, 32, 64])
def test_tensors_that_overlap(path: Path, offset: int) -> None:
    write_infos(path, gguf_tensor_info("a", [24], 0, 0), gguf_tensor_info("b", [8], 0, offset))
    refuse(path, "overlap")


def test_an_offset_that_is_not_aligned(path: Path) -> None:
    write_infos(path, gguf_tensor_info("t", [8], 0, 16))
    refuse(path, "not a multiple of 32")


@pytest.mark.parametrize("offset", [4096, 1 << 40, 1 << 63, (1 << 64) - 32])
def test_offsets_behind_the_end(path: Path, offset: int) -> None:
    write_infos(path, gguf_tensor_info("t", [8], 0, offset))
    refuse(path, "but the file has")


@pytest.mark.parametrize(
    "dims",
    [[1 << 32, 1 << 32], [(1 << 64) - 1], [1 << 62, 4], [1 << 63, 2], [1 << 16] * 4, [8, 1 << 40], [2048]],
)
def test_sizes_that_exceed_the_file_or_overflow(path: Path, dims: list[int]) -> None:
    write_infos(path, gguf_tensor_info("t", dims, 0, 0))
    refuse(path, "but the file has")


@pytest.mark.parametrize("dims", [[0], [8, 0], [0, 0, 0, 0]])
def test_empty_dimensions(path: Path, dims: list[int]) -> None:
    write_infos(path, gguf_tensor_info("t", dims, 0, 0))
    refuse(path, "empty dimension")


@pytest.mark.parametrize("n_dims", [0, 5, 1 << 31, (1 << 32) - 1])
def test_numbers_of_dimensions(path: Path, n_dims: int) -> None:
    info = gguf_string("t") + struct.pack("<I", n_dims) + struct.pack("<6Q", *[1] * 6)
    write_infos(path, info)
    refuse(path, f"has {n_dims} dimensions")


def test_rows_that_end_inside_a_block(path: Path) -> None:
    write_infos(path, gguf_tensor_info("t", [40, 4], GGUF_TYPES["Q4_0"][0], 0))
    refuse(path, "not whole q4_0 blocks")


@pytest.mark.parametrize(
    ("type_id", "shown"), [(23, "IQ4_XS"), (34, "TQ1_0"), (4, "type 4"), (99, "type 99"), (1 << 31, "type")]
)
def test_formats_that_are_not_run(path: Path, type_id: int, shown: str) -> None:
    write_infos(path, gguf_tensor_info("t", [256], type_id, 0))
    refuse(path, f"stored as {shown}", UnsupportedModel)


@pytest.mark.parametrize("name", [b"", b"\0", b"n" * 513, b"\xff", b"a\x1b[31m"])
def test_names_of_tensors(path: Path, name: bytes) -> None:
    info = gguf_string(name) + struct.pack("<IQIQ", 1, 8, 0, 0)
    write_infos(path, info)
    refuse(path, "cannot be the name|UTF-8")


def test_messages_carry_no_control_characters(path: Path) -> None:
    write_infos(path, gguf_string("evil\x1b]0;x\x07") + struct.pack("<IQIQ", 1, 8, 0, 0))
    with pytest.raises(MalformedFile) as caught:
        open_checkpoint(path)
    assert caught.value.message.isprintable()


# --- splits


def split(folder: Path, parts: int = 3) -> list[Path]:
    tensors = {f"t{i}": np.full(8, i, np.float32) for i in range(5)}
    return write_gguf_split(folder, "Some model (v1)", {**ARCH, "k": [1, 2]}, tensors, parts)


@pytest.mark.parametrize("opened", [0, 2])
def test_a_split_opens_from_any_part(tmp_path: Path, opened: int) -> None:
    paths = split(tmp_path)
    checkpoint = open_checkpoint(paths[opened])
    assert (checkpoint.name, len(checkpoint.tensors), checkpoint.metadata["k"]) == ("Some model (v1)", 5, [1, 2])
    assert [checkpoint.read(f"t{i}").view("<f4")[0] for i in range(5)] == [0, 1, 2, 3, 4]
    assert checkpoint.fingerprint() == open_checkpoint(paths[0]).fingerprint()


def test_a_folder_with_one_split(tmp_path: Path) -> None:
    split(tmp_path)
    assert len(open_checkpoint(tmp_path).tensors) == 5


def test_a_single_file_may_be_named_like_the_only_part(tmp_path: Path) -> None:
    assert open_checkpoint(write_gguf(tmp_path / "m-00001-of-00001.gguf", ARCH, {"a": VECTOR})).name == "m"


def test_a_part_is_missing(tmp_path: Path) -> None:
    paths = split(tmp_path)
    paths[1].unlink()
    refuse(paths[0], "00002-of-00003.gguf is missing")


def test_parts_that_say_something_else(tmp_path: Path) -> None:
    paths = split(tmp_path)
    paths[1].write_bytes(paths[2].read_bytes())
    refuse(paths[0], "says that it is another")
    whole = write_gguf(tmp_path / "x-00001-of-00002.gguf", ARCH, {"a": VECTOR})
    refuse(whole, "says that it is another")


def test_a_renamed_part(tmp_path: Path) -> None:
    refuse(split(tmp_path)[0].rename(tmp_path / "renamed.gguf"), "one of several parts")


def test_a_tensor_in_two_parts(tmp_path: Path) -> None:
    paths = split(tmp_path, parts=2)
    keys = {"split.no": Typed("u16", 1), "split.count": Typed("u16", 2), "split.tensors.count": Typed("i32", 5)}
    write_gguf(paths[1], keys, {"t0": VECTOR, "t1": VECTOR})
    refuse(paths[0], "'t0' appears twice")


def test_a_promised_number_of_tensors(tmp_path: Path) -> None:
    paths = split(tmp_path, parts=2)
    keys = {"split.no": Typed("u16", 1), "split.count": Typed("u16", 2)}
    write_gguf(paths[1], keys, {"t1": VECTOR})
    refuse(paths[0], "promises another number")


@pytest.mark.parametrize("name", ["m-00000-of-00000.gguf", "m-00001-of-99999.gguf"])
def test_absurd_numbers_of_parts(tmp_path: Path, name: str) -> None:
    refuse(write_gguf(tmp_path / name, ARCH, {}), "is split into", UnsupportedModel)


def test_a_part_that_links_out_of_the_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    paths = split(inside)
    paths[1].rename(outside / "part")
    paths[1].symlink_to(outside / "part")
    refuse(paths[0], "leads out of the model's folder")


# --- the tiny models are sound, whatever the format


@pytest.mark.parametrize("family", ["llama", "deepseek_v3"])
def test_tiny_models_open(path: Path, family: str) -> None:
    checkpoint = open_checkpoint(write_tiny_gguf(path, family, format="Q4_0"))
    assert checkpoint.metadata["general.architecture"] in ("llama", "deepseek2")
    assert checkpoint.nbytes == sum(len(checkpoint.read(name)) for name in checkpoint.tensors)


def test_errors_are_of_the_model_tree(path: Path) -> None:
    refuse(path, "does not exist", UnknownModel)
    path.mkdir()
    refuse(path, "neither .safetensors nor .gguf", ModelError)
