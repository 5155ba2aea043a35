"""Checkpoint: reading rows, noticing that files changed, what a folder may hold, and that nothing in it ever runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from finback.errors import MalformedFile, MissingTensor, ModelError, ModelTooLarge, UnknownModel, UnsupportedModel
from finback.weights import source
from finback.weights.checkpoint import open_checkpoint
from tests.weights.tiny import write_tiny_folder, write_tiny_gguf
from tests.weights.writers import gguf_header, gguf_tensor_info, random_blocks, write_gguf, write_safetensors

EXPERTS = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama"}, {"experts": EXPERTS, "v": EXPERTS[0, 0]})


# --- reading


def test_rows(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    info = checkpoint.tensor("experts")
    assert (info.rows, info.row_bytes, info.elements) == (6, 16, 24)
    assert checkpoint.read("experts", slice(3, 6)).tobytes() == EXPERTS[1].tobytes()
    assert checkpoint.read("experts", slice(2, 2)).nbytes == 0
    assert checkpoint.read("experts", slice(None, 1)).tobytes() == EXPERTS[0, 0].tobytes()


def test_rows_of_blocks(tmp_path: Path) -> None:
    raw = random_blocks("Q4_K", (4, 512), np.random.default_rng(0))
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", {}, {"w": raw}))
    assert checkpoint.read("w", slice(1, 3)).tobytes() == raw.data[288:864]


@pytest.mark.parametrize("rows", [slice(0, 7), slice(-1, None), slice(4, 2), slice(0, 6, 2)])
def test_rows_that_are_not_there(model: Path, rows: slice) -> None:
    with pytest.raises(ValueError, match="has rows 0 to 6"):
        open_checkpoint(model).read("experts", rows)


def test_reading_into_an_array(model: Path) -> None:
    out = np.empty(96, np.uint8)
    assert open_checkpoint(model).read("experts", out=out) is out
    assert out.tobytes() == EXPERTS.tobytes()
    with pytest.raises(ValueError, match="out has 96 bytes"):
        open_checkpoint(model).read("v", out=out)


def test_a_tensor_that_is_not_there(model: Path) -> None:
    with pytest.raises(MissingTensor, match="no tensor 'w'"):
        open_checkpoint(model).read("w")


def test_a_tensor_larger_than_memory(tmp_path: Path) -> None:
    """Ten terabytes that the file really has, as a hole."""
    path = tmp_path / "m.gguf"
    head = gguf_header({"general.architecture": "llama"}, [gguf_tensor_info("w", [1 << 20, 10 << 18], 0, 0)])
    path.write_bytes(head)
    os.truncate(path, (10 << 40) + 4096)
    checkpoint = open_checkpoint(path)
    with pytest.raises(ModelTooLarge, match="10995116277760 bytes"):
        checkpoint.read("w")
    assert not checkpoint.read("w", slice(0, 1)).any()


# --- files that change


def test_truncated_after_opening(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    os.truncate(model, model.stat().st_size - 8)
    with pytest.raises(MalformedFile, match="changed while the model was loading"):
        checkpoint.read("v")


def test_overwritten_after_opening(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    before = model.stat()
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(MalformedFile, match="changed"):
        checkpoint.read("v")


def test_replaced_after_opening(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    before = model.stat()
    other = model.with_name("other")
    other.write_bytes(model.read_bytes())
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(model)
    with pytest.raises(MalformedFile, match="changed"):
        checkpoint.read("v")


def test_deleted_after_opening(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    model.unlink()
    with pytest.raises(MalformedFile, match="changed"):
        checkpoint.read("v")


def test_truncated_while_reading(model: Path) -> None:
    """The last look at the size is already past: the read itself comes up short."""
    descriptor = os.open(model, os.O_RDONLY)
    with pytest.raises(MalformedFile, match="ends at byte"):
        source.fill(descriptor, 0, np.empty(model.stat().st_size + 1, np.uint8), model)
    os.close(descriptor)


def test_a_disk_that_fails(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    checkpoint = open_checkpoint(model)
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(ModelError, match="Input/output error"):
        checkpoint.read("v")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(model: Path) -> None:
    model.chmod(0)
    with pytest.raises(ModelError, match="Permission denied"):
        open_checkpoint(model)


# --- fingerprints


def test_fingerprint_is_stable_and_changes_with_the_file(model: Path) -> None:
    first = open_checkpoint(model).fingerprint()
    assert first == open_checkpoint(model).fingerprint()
    assert len(first) == 64
    os.utime(model, ns=(1, 1))
    assert open_checkpoint(model).fingerprint() != first


def test_fingerprint_covers_the_configuration(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "m", "llama", shards=2)
    first = open_checkpoint(folder).fingerprint()
    config = folder / "config.json"
    config.write_text(config.read_text().replace("1e-06", "2e-06"))
    assert open_checkpoint(folder).fingerprint() != first


def test_fingerprint_reads_no_weights(tmp_path: Path) -> None:
    """The same header, size and time: cheap, and so blind to the weights themselves, on purpose."""
    paths = [tmp_path / "a" / "m.safetensors", tmp_path / "b" / "m.safetensors"]
    for value, path in enumerate(paths):
        path.parent.mkdir()
        write_safetensors(path, {"w": np.full(4, value, np.float32)})
        os.utime(path, ns=(5, 5))
    assert open_checkpoint(paths[0]).fingerprint() == open_checkpoint(paths[1]).fingerprint()


# --- what a path may be


def test_a_folder_with_one_gguf(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "m.gguf", "qwen3")
    (tmp_path / "README.md").write_text("# m")
    assert open_checkpoint(tmp_path).kind == "gguf"
    assert open_checkpoint(str(tmp_path / "m.gguf")).name == "m"


def test_a_folder_with_several_gguf(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", {}, {})
    write_gguf(tmp_path / "b.gguf", {}, {})
    with pytest.raises(UnknownModel, match="2 GGUF files") as caught:
        open_checkpoint(tmp_path)
    assert "a.gguf" in str(caught.value.hint)


def test_side_files(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "m", "qwen2")
    (folder / "chat_template.jinja").write_text("{{ x }}")
    checkpoint = open_checkpoint(folder)
    assert set(checkpoint.files) == {
        "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja",
    }  # fmt: skip
    assert checkpoint.side_json("generation_config.json")["top_p"] == 0.95
    assert checkpoint.side_json("special_tokens_map.json") == {}
    assert checkpoint.side_text("chat_template.jinja") == "{{ x }}"
    assert open_checkpoint(folder / "model.safetensors").hf_config == checkpoint.hf_config


def test_a_side_file_of_gigabytes(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "m", "qwen2")
    os.truncate(folder / "tokenizer.json", 4 << 30)
    with pytest.raises(MalformedFile, match="at most"):
        open_checkpoint(folder).side_json("tokenizer.json")


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "m", "qwen2")
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(MalformedFile, match="not UTF-8"):
        open_checkpoint(folder).side_text("chat_template.jinja")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "x.pkl", "model.ckpt"])
def test_pickled_weights_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    (tmp_path / "modeling_x.py").write_text("raise SystemExit(3)")
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "modeling_x.X"}}')
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UnsupportedModel, match="never read") as caught:
            open_checkpoint(path)
        assert "safetensors" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["notes.txt", "model.onnx", "empty"])
def test_other_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"" if name == "empty" else b"hello, this is not a model")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UnsupportedModel, match="neither"):
            open_checkpoint(path)


@pytest.mark.parametrize("path", ["/nonexistent/model", "a\0b", "x" * 5000, ""])
def test_paths_that_lead_nowhere(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ModelError, UnknownModel)):
        open_checkpoint(path)


WATCHED = """
import sys
folder, seen = sys.argv[1], []
def watch(event, arguments):
    named = [str(a) for a in arguments if isinstance(a, str | bytes)]
    touched = event == "open" and any(folder in n and n.endswith((".py", ".bin", ".pth")) for n in named)
    if touched or event.startswith(("pickle.", "marshal.", "subprocess.", "os.system", "os.exec", "ctypes.")):
        seen.append((event, named))
    if event == "import" and arguments[1] and folder in str(arguments[1]):
        seen.append((event, named))
import numpy
from finback.weights.checkpoint import open_checkpoint
sys.addaudithook(watch)
checkpoint = open_checkpoint(folder)
for name in checkpoint.tensors:
    checkpoint.read(name)
for name in checkpoint.files:
    checkpoint.side_text(name)
sys.exit(f"forbidden: {seen}" if seen else 0)
"""


def test_nothing_in_a_folder_is_executed(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "m", "llama", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    (folder / "modeling_evil.py").write_text("import os; os._exit(7)")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    (folder / "evil.pth").write_text("import os; os._exit(7)")
    command = [sys.executable, "-c", WATCHED, str(folder)]
    result = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": _import_path()}, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()


def _import_path() -> str:
    import finback

    return str(Path(finback.__file__).parents[1])
