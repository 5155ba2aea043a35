"""Names are not paths: what a reference means, and which file names are let near the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finback.errors import UnknownModel
from finback.hub.catalog import Repository
from finback.hub.names import is_data_file, parse_repository, safe_relative, split_parts

HOSTILE = [
    "../x.json", "a/../../x.json", "/etc/passwd", "//x", "a//b", "", ".", "..", "./x", "~/x", "~root", "-rf",
    "C:\\x", "C:x", "..\\x", "a\\b", "x\0.json", "x\n.json", "\x1b[2J.json", ".bashrc", "a/.ssh/x",
    "\\\\host\\share", "x?.json", "x*.json", "con\x7f", "a/b/c/d/e/f/g/h", "x" * 300, "%2e%2e/..", "\u202egpj.json",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_file_names_are_refused(text: str) -> None:
    with pytest.raises(UnknownModel, match="plain relative path"):
        safe_relative(text)


@pytest.mark.parametrize(
    "text", ["model-00001-of-000163.safetensors", "Q4_K_M/x y.gguf", "日本.json", "a..b.json", "%2e.json"]
)
def test_plain_file_names_pass(text: str) -> None:
    assert safe_relative(text) == Path(text)


@given(st.text(max_size=60))
def test_whatever_passes_stays_below_its_folder(text: str) -> None:
    folder = Path("/models/files")
    try:
        path = folder / safe_relative(text)
    except UnknownModel:
        return
    assert path.is_relative_to(folder)
    assert path != folder
    assert ".." not in path.parts


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("config.json", True),
        ("model-00001-of-00002.safetensors", True),
        ("a/b.gguf", True),
        ("chat_template.jinja", True),
        ("other.jinja", False),
        ("modeling_deepseek.py", False),
        ("pytorch_model.bin", False),
        ("model.pt", False),
        ("model.pth", False),
        ("x.pkl", False),
        ("README.md", False),
    ],
)
def test_only_data_is_fetched(path: str, wanted: bool) -> None:
    assert is_data_file(path) is wanted


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("deepseek-ai/DeepSeek-V2-Lite", Repository("deepseek-ai/DeepSeek-V2-Lite")),
        ("hf.co/a/b", Repository("a/b")),
        ("huggingface.co/a/b", Repository("a/b")),
        ("hf.co/a/b-GGUF:Q4_K_M", Repository("a/b-GGUF", "Q4_K_M")),
        ("a/b:q8_0@v1.0", Repository("a/b", "Q8_0", "v1.0")),
        ("a/b@refs/pr/3", Repository("a/b", None, "refs/pr/3")),
        ("a/b:dir/File-Q4_0.gguf", Repository("a/b", "dir/File-Q4_0.gguf")),
        ("https://huggingface.co/a/b", Repository("a/b")),
        ("https://huggingface.co/a/b/tree/dev", Repository("a/b", None, "dev")),
        ("https://huggingface.co/a/b/blob/main/x.gguf", Repository("a/b", "x.gguf")),
        ("https://hf.co/a/b/resolve/main/Q4/x.gguf?download=true", Repository("a/b", "Q4/x.gguf")),
        ("justaname", None),
        ("a/b/c", None),
        ("-a/b", None),
        ("a/.b", None),
        ("a b/c", None),
        ("../b", None),
    ],
)
def test_references(text: str, meant: Repository | None) -> None:
    assert parse_repository(text) == meant


@pytest.mark.parametrize(
    "text", ["https://evil.example/a/b", "a/b@../x", "a/b@a//b", "a/b:../../x.gguf", "a/b:/x.gguf"]
)
def test_hostile_references_are_typed_errors(text: str) -> None:
    with pytest.raises(UnknownModel):
        parse_repository(text)


def test_a_repository_prints_as_it_is_typed() -> None:
    for text in ("hf.co/a/b", "hf.co/a/b:Q4_K_M", "hf.co/a/b:Q4_K_M@dev"):
        assert str(parse_repository(text)) == text


def test_parts_of_a_split_file_belong_together(tmp_path: Path) -> None:
    for name in ("m-00002-of-00002.gguf", "m-00001-of-00002.gguf", "other.gguf", "m.gguf"):
        (tmp_path / name).touch()
    parts = split_parts(tmp_path / "m-00002-of-00002.gguf")
    assert [part.name for part in parts] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert split_parts(tmp_path / "other.gguf") == [tmp_path / "other.gguf"]
