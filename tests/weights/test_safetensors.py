"""The safetensors reader: single files and indexed folders, and every lie that it must refuse."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finback.errors import FinbackError, MalformedFile, MissingTensor, ModelError, UnsupportedModel
from finback.weights import safetensors
from finback.weights.checkpoint import open_checkpoint
from tests.weights.tiny import write_tiny_folder
from tests.weights.writers import Raw, safetensors_bytes, write_safetensors, write_safetensors_folder

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    tensors = {f"t{i}": np.full((2, 3), i, np.float32) for i in range(6)}
    return write_safetensors_folder(tmp_path / "model", {"model_type": "llama"}, tensors, shards=3)


def refuse(path: Path, match: str, error: type[FinbackError] = MalformedFile) -> None:
    with pytest.raises(error, match=match):
        open_checkpoint(path)


def write_header(path: Path, header: Any, data: bytes = bytes(8)) -> Path:
    path.write_bytes(safetensors_bytes(header, data))
    return path


def edit_index(folder: Path, **shard_of: Any) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"].update(shard_of)
    path.write_text(json.dumps(index))


# --- what is read


def test_every_type(path: Path) -> None:
    types = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E8M0": 1, "U8": 1, "I8": 1, "BOOL": 1}
    types |= {"I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8}
    wanted = {name: Raw(name, (3, 2), os.urandom(6 * size)) for name, size in types.items()}
    checkpoint = open_checkpoint(write_safetensors(path, wanted, {"format": "pt"}))
    assert (checkpoint.kind, checkpoint.name, checkpoint.hf_config) == ("safetensors", "model", {})
    for name, raw in wanted.items():
        assert (checkpoint.tensors[name].format, checkpoint.tensors[name].shape) == (name.lower(), (3, 2))
        assert checkpoint.read(name).tobytes() == raw.data


def test_scalars_and_vectors(path: Path) -> None:
    checkpoint = open_checkpoint(write_safetensors(path, {"s": Raw("F32", (), bytes(4)), "v": np.zeros(3, np.int64)}))
    assert [(t.rows, t.elements, t.nbytes) for t in checkpoint.tensors.values()] == [(1, 1, 4), (1, 3, 24)]


def test_header_padded_with_spaces(path: Path) -> None:
    write_header(path, json.dumps({"a": ENTRY}).encode() + b"     ")
    assert open_checkpoint(path).read("a").nbytes == 8


def test_a_sharded_folder(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    assert (checkpoint.name, checkpoint.hf_config) == ("model", {"model_type": "llama"})
    assert [int(checkpoint.read(f"t{i}").view("<f4")[0]) for i in range(6)] == list(range(6))
    assert len({t.path for t in checkpoint.tensors.values()}) == 3


def test_the_index_decides_which_copy_counts(sharded: Path) -> None:
    extra = {"t0": np.full(3, 9, np.float32), "unlisted": np.zeros(3, np.float32)}
    tensors = {**extra, "t1": np.ones((2, 3), np.float32), "t4": np.ones((2, 3), np.float32)}
    write_safetensors(sharded / "model-00002-of-00003.safetensors", tensors)
    checkpoint = open_checkpoint(sharded)
    assert checkpoint.read("t0").view("<f4")[0] == 0
    assert "unlisted" not in checkpoint.tensors


def test_a_cache_of_hugging_face(tmp_path: Path) -> None:
    """snapshots/<revision> holds links into blobs/, beside it."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    write_tiny_folder(blobs, "llama")
    snapshot.mkdir(parents=True)
    for file in list(blobs.iterdir()):
        os.symlink(os.path.relpath(file, snapshot), snapshot / file.name)
    checkpoint = open_checkpoint(snapshot)
    assert checkpoint.side_json("tokenizer.json")["model"]["type"] == "BPE"
    assert checkpoint.read("model.norm.weight").nbytes == 256


@pytest.mark.parity
def test_same_tensors_as_the_safetensors_package(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = {"a": np.random.default_rng().normal(size=(5, 7)), "b": np.arange(4, dtype=np.int16)}
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, {"k": "v"})
    checkpoint = open_checkpoint(path)
    for name, values in tensors.items():
        assert checkpoint.read(name).tobytes() == values.tobytes()
    assert load_file(write_safetensors(tmp_path / "b.safetensors", tensors))["a"].tolist() == tensors["a"].tolist()


# --- attacks: one file


def test_cut_at_every_byte(path: Path) -> None:
    whole = write_header(path, {"a": ENTRY}).read_bytes()
    open_checkpoint(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(MalformedFile):
            open_checkpoint(path)


@pytest.mark.parametrize("length", [9, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_header_lengths_that_lie(path: Path, length: int) -> None:
    path.write_bytes(struct.pack("<Q", length) + b"{}      ")
    refuse(path, f"claims a header of {length} bytes")


def test_a_header_of_gigabytes_is_not_read(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 3 << 30))
    os.truncate(path, 4 << 30)
    refuse(path, "claims a header")


JSON_BOMBS = {
    "deep lists": b'{"a":' + b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "closed depth": b'{"a":' + b"[" * 500 + b"]" * 500 + b"}",
    "long number": b'{"a":' + b"9" * 1_000_000 + b"}",
    "NaN": b'{"a":NaN}',
    "infinity": b'{"a":-Infinity}',
    "not UTF-8": b'{"a":"\xff"}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "a list": b"[1,2]",
    "nothing": b"",
    "spaces": b"   {}",
    "two values": b"{}{}",
    "cut": b'{"a":{"dtype"',
}


@pytest.mark.parametrize("bomb", JSON_BOMBS)
def test_headers_that_are_not_json(path: Path, bomb: str) -> None:
    write_header(path, JSON_BOMBS[bomb])
    refuse(path, "JSON|nested")


def test_names_twice(path: Path) -> None:
    entry = json.dumps(ENTRY)
    write_header(path, f'{{"a":{entry},"a":{entry}}}'.encode())
    refuse(path, "a key appears twice")
    write_header(path, b'{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}')
    refuse(path, "a key appears twice")


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": None}, {"dtype": 3}, {"shape": None}, {"shape": "2"}, {"shape": [2.0]}, {"shape": [True, 2]},
        {"shape": [-2]}, {"shape": [0]}, {"shape": [1] * 9}, {"shape": [1 << 63]}, {"shape": [1 << 40, 1 << 40]},
        {"shape": {"0": 2}}, {"shape": [[2]]}, {"data_offsets": [0]}, {"data_offsets": [0, 8, 8]},
        {"data_offsets": [8, 0]}, {"data_offsets": [-8, 0]}, {"data_offsets": [0, 8.0]}, {"data_offsets": [0, 4]},
        {"data_offsets": ["0", "8"]}, {"data_offsets": [1 << 62, (1 << 62) + 8]}, {"data_offsets": [8, 16]},
        {"data_offsets": [0, 10**30]}, {"extra": 1},
    ],
)  # fmt: skip
def test_entries_that_lie(path: Path, change: dict[str, Any]) -> None:
    write_header(path, {"a": {**ENTRY, **change}})
    with pytest.raises((MalformedFile, UnsupportedModel)):
        open_checkpoint(path)


@pytest.mark.parametrize("entry", [None, 1, "x", [], {}, {"dtype": "F32"}])
def test_entries_that_are_not_entries(path: Path, entry: Any) -> None:
    write_header(path, {"a": entry})
    refuse(path, "must have exactly")


@pytest.mark.parametrize("dtype", ["F8_E5M2", "F4", "C64", "Q4_0", "f32", "", "X" * 1000])
def test_types_that_are_not_run(path: Path, dtype: str) -> None:
    write_header(path, {"a": {**ENTRY, "dtype": dtype}})
    refuse(path, "which Finback does not run", UnsupportedModel)


@pytest.mark.parametrize(
    ("second", "match"),
    [([4, 12], "overlaps"), ([0, 8], "overlaps"), ([12, 20], "hole"), ([8, 16], "tensors end at")],
)
def test_overlaps_holes_and_leftovers(path: Path, second: list[int], match: str) -> None:
    write_header(path, {"a": ENTRY, "b": {**ENTRY, "data_offsets": second}}, bytes(20))
    refuse(path, match)


@pytest.mark.parametrize("name", ["", "\0", "n" * 513, "a\x1b[0m", "\ud800"])
def test_names(path: Path, name: str) -> None:
    write_header(path, json.dumps({name: ENTRY}).encode())
    refuse(path, "cannot be the name")


@pytest.mark.parametrize("metadata", [None, [], "x", {"a": 1}, {"a": {}}])
def test_metadata(path: Path, metadata: Any) -> None:
    write_header(path, {"__metadata__": metadata, "a": ENTRY})
    refuse(path, "__metadata__ must map names to strings")


# --- attacks: the index


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors", "/etc/passwd", "a/../../b", "sub/file.safetensors", "..", ".", "", "a\0b",
        "\\\\host\\share\\x.safetensors", "C:\\x", "C:x", "model\n.safetensors", "n" * 300, "\u202e.safetensors",
    ],
)  # fmt: skip
def test_shards_that_travel(sharded: Path, shard: str) -> None:
    (sharded.parent / "secret.safetensors").write_bytes(safetensors_bytes({"t0": ENTRY}, bytes(8)))
    edit_index(sharded, t0=shard)
    refuse(sharded, "not a plain file name")


def test_a_shard_that_links_out(sharded: Path) -> None:
    outside = write_safetensors(sharded.parent / "outside.safetensors", {"t0": np.zeros(2, np.float32)})
    (sharded / "link.safetensors").symlink_to(outside)
    edit_index(sharded, t0="link.safetensors")
    refuse(sharded, "leads out of the model's folder")


def test_side_files_that_link_out(sharded: Path) -> None:
    (sharded / "tokenizer.json").symlink_to("/etc/hostname")
    refuse(sharded, "leads out of the model's folder")


def test_a_chain_of_links_that_never_ends(sharded: Path) -> None:
    (sharded / "loop.safetensors").symlink_to("loop.safetensors")
    edit_index(sharded, t0="loop.safetensors")
    with pytest.raises(ModelError):
        open_checkpoint(sharded)


def test_a_pipe_does_not_hang(sharded: Path) -> None:
    os.mkfifo(sharded / "pipe.safetensors")
    edit_index(sharded, t0="pipe.safetensors")
    refuse(sharded, "not a regular file")


def test_a_device_is_refused(sharded: Path) -> None:
    (sharded / "zero.safetensors").symlink_to("/dev/zero")
    edit_index(sharded, t0="zero.safetensors")
    refuse(sharded, "leads out of the model's folder")
    refuse(Path("/dev/zero"), "not a regular file")


def test_a_folder_where_a_shard_should_be(sharded: Path) -> None:
    (sharded / "dir.safetensors").mkdir()
    edit_index(sharded, t0="dir.safetensors")
    refuse(sharded, "not a regular file")


def test_a_shard_is_missing(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    refuse(sharded, r"00002-of-00003\.safetensors is missing")


def test_a_listed_tensor_is_missing(sharded: Path) -> None:
    edit_index(sharded, t9="model-00001-of-00003.safetensors")
    refuse(sharded, "'t9', which", MissingTensor)


@pytest.mark.parametrize("weight_map", [None, [], {}, "x", {"t0": 1}, {"t0": None}, {"t0": ["a"]}])
def test_indexes_that_are_not_maps(sharded: Path, weight_map: Any) -> None:
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refuse(sharded, "weight_map must map")


def test_an_index_with_too_many_shards(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "MAX_SHARDS", 2)
    refuse(sharded, "names 3 files")


def test_an_index_too_large_to_read(sharded: Path) -> None:
    os.truncate(sharded / "model.safetensors.index.json", 1 << 40)
    refuse(sharded, "at most")


@pytest.mark.parametrize("bomb", JSON_BOMBS)
def test_configurations_that_are_not_json(sharded: Path, bomb: str) -> None:
    (sharded / "config.json").write_bytes(JSON_BOMBS[bomb])
    if bomb != "spaces":
        refuse(sharded, "JSON|nested")


def test_several_files_without_an_index(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    refuse(sharded, "3 .safetensors files and no model.safetensors.index.json", UnsupportedModel)
