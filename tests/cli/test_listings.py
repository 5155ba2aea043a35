"""pull, list, show and rm on small models of every family."""

from __future__ import annotations

from pathlib import Path

import pytest

from finback.hub.store import Store
from tests.cli.conftest import Cli, put_model
from tests.weights.tiny import FAMILIES, write_tiny_folder, write_tiny_gguf

NAME = "r1-distill-qwen:7b-q4_k_m"


def test_an_empty_home(cli: Cli) -> None:
    outcome = cli("list", status=0)
    assert outcome.out == ""
    assert "finback chat" in outcome.err
    assert cli("list", "--json", status=0).json == []


def test_what_is_pulled_is_listed(cli: Cli, home: Path) -> None:
    model = put_model(home, NAME)
    (home / "models" / "hf.co%2Fa%2Fb" / "files").mkdir(parents=True)
    (home / "models" / "hf.co%2Fa%2Fb" / "files" / "x.gguf.part").write_bytes(bytes(2500))
    assert cli("list", status=0).out.splitlines() == [
        "NAME                         SIZE  SOURCE                              PULLED",
        "r1-distill-qwen:7b-q4_k_m    4 kB  somewhere                           2026-01-02",
        "hf.co/a/b                  2.5 kB  incomplete: pull it again to go on",
    ]
    whole, broken = cli("list", "--json", status=0).json
    assert whole["name"] == NAME
    assert whole["path"] == str(model.location)
    assert whole["files"] == [{"path": "x.gguf", "size_bytes": 4000, "sha256": "ab" * 32}]
    assert broken == {"name": "hf.co/a/b", "complete": False, "size_bytes": 2500}


def test_the_catalog(cli: Cli, home: Path) -> None:
    put_model(home, NAME)
    records = {record["name"]: record for record in cli("list", "--catalog", "--json", status=0).json}
    assert records[NAME]["pulled"]
    assert not records["deepseek-r1:671b-fp8"]["pulled"]
    assert records[NAME]["distillation"]
    assert not records["deepseek-r1:671b-fp8"]["distillation"]
    lines = cli("list", "--catalog", status=0).out.splitlines()
    assert len(lines) == len(records) + 1
    assert lines[0].split()[:2] == ["NAME", "DOWNLOAD"]


def test_a_local_model_is_pulled_listed_shown_and_removed(cli: Cli, home: Path, tmp_path: Path) -> None:
    path = tmp_path / "own" / "tiny.gguf"
    path.parent.mkdir()
    write_tiny_gguf(path, "llama")
    outcome = cli("pull", str(path), "--name", "mine", "--json", status=0)
    assert outcome.json["name"] == "local/mine"
    assert cli("list", "--json", status=0).json == [outcome.json]
    assert cli("show", "mine", "--json", status=0).json["path"] == str(path)
    assert "removed local/mine" in cli("rm", "mine", status=0).err
    assert path.exists()
    assert cli("list", "--json", status=0).json == []


def test_pull_says_what_to_do_next(cli: Cli, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", "llama")
    outcome = cli("pull", str(tmp_path / "tiny.gguf"), status=0)
    assert outcome.out == ""
    assert "finback chat local/tiny" in outcome.err


def test_removing_frees_the_pack_too(cli: Cli, home: Path, tmp_path: Path) -> None:
    from finback.weights.checkpoint import open_checkpoint
    from finback.weights.config import ModelConfig
    from finback.weights.pack import load_weights

    folder = tmp_path / "tiny"
    write_tiny_folder(folder, "llama")
    cli("pull", str(folder), status=0)
    checkpoint = open_checkpoint(folder)
    for format in (None, "q8"):
        load_weights(checkpoint, ModelConfig.from_checkpoint(checkpoint), format=format, cache_dir=home / "packs")
    assert len(list((home / "packs").glob("*.safetensors"))) == 2
    cli("rm", "local/tiny", status=0)
    assert not list((home / "packs").glob("*.safetensors"))


def test_several_models_are_removed_at_once(cli: Cli, home: Path) -> None:
    put_model(home, NAME)
    put_model(home, "hf.co/a/b")
    cli("rm", "r1-distill-qwen:7b", "a/b", status=0)
    assert Store(home).models() == []


def test_an_incomplete_pull_can_be_removed(cli: Cli, home: Path) -> None:
    (home / "models" / "hf.co%2Fa%2Fb" / "files").mkdir(parents=True)
    cli("rm", "hf.co/a/b", status=0)
    assert cli("list", "--json", status=0).json == []


@pytest.mark.parametrize("name", ["nope", "..", ".", "/etc", "../../x"])
def test_removing_what_is_not_there(cli: Cli, home: Path, name: str) -> None:
    put_model(home, NAME)
    assert name in cli("rm", name, status=1).error[0]
    assert Store(home).find(NAME)


@pytest.mark.parametrize("family", FAMILIES)
def test_show_reads_every_family(cli: Cli, tmp_path: Path, family: str) -> None:
    folder = tmp_path / family
    write_tiny_folder(folder, family)
    record = cli("show", str(folder), "--json", status=0).json
    assert record["architecture"] == family.removesuffix("_lite")
    assert 0 < record["active_parameters"] <= record["parameters"]
    assert (record["active_parameters"] < record["parameters"]) == family.startswith("deepseek")
    assert record["attention"] == ("multi-head latent" if family.startswith("deepseek") else "grouped-query")
    assert record["kv_dtype"] == "f32"
    values = 3 * (32 + 8) if family.startswith("deepseek") else 3 * 2 * 2 * (32 if family == "qwen3" else 16)
    assert record["kv_bytes_per_token"] == 4 * values
    assert record["context"] == 512
    assert not record["pack"]["exists"]
    assert not record["pulled"]
    text = cli("show", str(folder), status=0).out
    assert record["architecture"] in text
    assert f"{4 * values} bytes per token" in text


def test_show_says_what_a_narrower_format_does(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    write_tiny_folder(folder, "llama", dtype="BF16")
    record = cli("show", str(folder), "--format", "q4", "--json", status=0).json
    assert record["pack"]["format"] == "q4"
    packed = {change["packed"] for change in record["pack"]["changed"]}
    assert {"q4_0", "q8_0"} <= packed
    text = cli("show", str(folder), "--format", "q4", status=0).out
    assert "bf16 -> q4_0: quantised, as asked (q4)" in text


def test_show_refuses_to_quantise_twice(cli: Cli, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "x.gguf", "llama", format="Q8_0")
    message, hint = cli("show", str(tmp_path / "x.gguf"), "--format", "q4", status=1).error
    assert "already quantised" in message
    assert hint


def test_show_of_a_model_that_is_not_here(cli: Cli) -> None:
    record = cli("show", "deepseek-r1:671b-fp8", "--json", status=0).json
    assert not record["pulled"]
    assert record["parameters"] == 671_026_000_000
    assert "finback pull deepseek-r1:671b-fp8" in cli("show", "deepseek-r1:671b-fp8", status=0).out


def test_show_of_broken_files(cli: Cli, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 40)
    assert "broken.gguf" in cli("show", str(broken), status=1).error[0]
    missing, _ = cli("show", str(tmp_path / "missing.gguf"), status=1).error
    assert "no such file" in missing


def test_an_ambiguous_name_lists_its_members(cli: Cli) -> None:
    message, hint = cli("pull", "r1-distill-qwen", status=1).error
    assert "several models" in message
    assert "r1-distill-qwen:32b-bf16" in str(hint)


def test_a_misnomer_gets_the_true_name(cli: Cli) -> None:
    message, hint = cli("pull", "deepseek-r1:7b", status=1).error
    assert "distillations" in message
    assert hint == "finback pull r1-distill-qwen:7b-q4_k_m"
