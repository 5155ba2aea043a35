"""Whole pulls against a hub on the loopback interface: which files, what ends up on disk, what is refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from finback.config import Settings
from finback.errors import (
    ChecksumMismatch,
    DownloadError,
    FinbackError,
    HubError,
    ModelTooLarge,
    UnknownModel,
    UnsupportedModel,
)
from finback.hub import resolve
from finback.hub.huggingface import gguf_format
from finback.hub.pull import pull
from finback.hub.store import PulledModel, Store
from tests.hub.conftest import COMMIT, IMPATIENT, REPO, FakeHub, Fault, Recorder

RANDOM = random.Random(2)
SAFETENSORS = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": RANDOM.randbytes(5000),
    "model-00001-of-00002.safetensors": RANDOM.randbytes(90_000),
    "model-00002-of-00002.safetensors": RANDOM.randbytes(80_000),
    "model.safetensors.index.json": b"{}",
}
NEVER = {
    "modeling_evil.py": b"import os",
    "pytorch_model.bin": b"\x80\x04pickle",
    "consolidated.safetensors": RANDOM.randbytes(2000),
    "original/model.safetensors": RANDOM.randbytes(2000),
    "inference/config.json": b"{}",
    "README.md": b"hello",
    ".gitattributes": b"",
    "training_args.json": b"{}",
}
GGUF = {
    "Some-Model-Q4_K_M.gguf": RANDOM.randbytes(4000),
    "Some-Model-Q8_0.gguf": RANDOM.randbytes(8000),
    "Some-Model-IQ2_XS.gguf": RANDOM.randbytes(2000),
    "mmproj-F16.gguf": RANDOM.randbytes(1500),
    "BF16/Some-Model-BF16-00001-of-00002.gguf": RANDOM.randbytes(9000),
    "BF16/Some-Model-BF16-00002-of-00002.gguf": RANDOM.randbytes(7000),
}


@pytest.fixture
def pull_it(hub: FakeHub, settings: Settings, recorder: Recorder) -> Any:
    def run(text: str = REPO, **options: Any) -> PulledModel:
        return pull(text, settings, progress=recorder, patience=IMPATIENT, environ=hub.environ, **options)

    return run


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_safetensors_model_and_nothing_else(
    pull_it: Any, hub: FakeHub, settings: Settings, recorder: Recorder
) -> None:
    hub.files = SAFETENSORS | NEVER
    model = pull_it()
    assert model.name == f"hf.co/{REPO}"
    assert model.revision == COMMIT
    assert model.location == resolve(REPO, settings)
    assert names_below(model.location) == sorted(SAFETENSORS)
    for path, content in SAFETENSORS.items():
        assert (model.location / path).read_bytes() == content
    assert names_below(model.location.parent) == ["files/" + n for n in sorted(SAFETENSORS)] + ["manifest.json"]
    assert recorder.counted_bytes == recorder.total_bytes == model.size_bytes == sum(map(len, SAFETENSORS.values()))


def test_configuration_comes_before_weights(pull_it: Any, hub: FakeHub) -> None:
    hub.files = SAFETENSORS
    pull_it()
    fetched = [path.rsplit("/", 1)[1] for path, _ in hub.requests if "/resolve/" in path]
    assert fetched[-2:] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_a_listing_of_many_pages(pull_it: Any, hub: FakeHub) -> None:
    hub.files = SAFETENSORS | NEVER
    hub.page_size = 2
    assert len(pull_it().files) == len(SAFETENSORS)


def test_a_listing_may_not_wander_to_another_server(pull_it: Any, hub: FakeHub) -> None:
    hub.files = SAFETENSORS
    hub.fail("tree", Fault(headers={"Link": '<http://127.0.0.2:9/evil>; rel="next"'}))
    assert len(pull_it().files) == len(SAFETENSORS)


def test_pulling_twice_asks_for_nothing(pull_it: Any, hub: FakeHub) -> None:
    hub.files = SAFETENSORS
    first = pull_it()
    hub.requests.clear()
    assert pull_it() == first
    assert hub.requests == []


def test_two_pulls_at_once_fetch_once(pull_it: Any, hub: FakeHub, recorder: Recorder) -> None:
    hub.files = SAFETENSORS
    hub.fail("model-00001-of-00002.safetensors", Fault(chunk_bytes=10_000, pause_s=0.02))
    models: list[PulledModel] = []
    threads = [threading.Thread(target=lambda: models.append(pull_it())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert models[0] == models[1]
    assert any("waiting for it" in note for note in recorder.notes)
    assert all(len(hub.asked_for(path)) == 1 for path in SAFETENSORS)


def test_a_deleted_file_is_fetched_again(pull_it: Any, hub: FakeHub) -> None:
    hub.files = SAFETENSORS
    path = pull_it().location / "tokenizer.json"
    path.unlink()
    pull_it()
    assert path.read_bytes() == SAFETENSORS["tokenizer.json"]


def test_an_interrupted_pull_goes_on(pull_it: Any, hub: FakeHub, settings: Settings, recorder: Recorder) -> None:
    hub.files = SAFETENSORS
    second = "model-00002-of-00002.safetensors"
    hub.fail(second, Fault(cut_after=30_000), *[Fault(status=500)] * 3)
    with pytest.raises(DownloadError):
        pull_it()
    store = Store(settings.home)
    assert store.models() == []
    assert [broken.name for broken in store.incomplete()] == [f"hf.co/{REPO}"]
    with pytest.raises(UnknownModel, match="not on this machine"):
        resolve(REPO, settings)
    hub.requests.clear()
    recorder.counted_bytes = 0
    pull_it()
    fetched = [(path.rsplit("/", 1)[1], headers.get("range")) for path, headers in hub.requests if "/resolve/" in path]
    assert fetched == [(second, "bytes=30000-")]
    assert recorder.counted_bytes == recorder.total_bytes


def test_a_file_that_changed_at_the_source_is_fetched_again(pull_it: Any, hub: FakeHub) -> None:
    hub.files = dict(SAFETENSORS)
    hub.fail("model-00002-of-00002.safetensors", Fault(status=404))
    with pytest.raises(UnknownModel):
        pull_it()
    hub.files["tokenizer.json"] = RANDOM.randbytes(5000)
    model = pull_it()
    assert (model.location / "tokenizer.json").read_bytes() == hub.files["tokenizer.json"]


def test_files_of_an_earlier_state_do_not_stay(pull_it: Any, hub: FakeHub) -> None:
    hub.files = SAFETENSORS | {"added_tokens.json": b"{}"}
    model = pull_it()
    (model.location / "tokenizer.json").unlink()
    hub.files = dict(SAFETENSORS)
    assert names_below(pull_it().location) == sorted(SAFETENSORS)


def test_an_inspector_sees_the_configuration_before_the_weights(pull_it: Any, hub: FakeHub, settings: Settings) -> None:
    hub.files = SAFETENSORS

    def refuse(folder: Path) -> None:
        assert (folder / "config.json").is_file()
        raise UnsupportedModel("not this one")

    with pytest.raises(UnsupportedModel, match="not this one"):
        pull_it(inspect=refuse)
    assert not [path for path, _ in hub.requests if path.endswith(".safetensors")]
    assert Store(settings.home).models() == []


def test_small_files_are_checked_by_their_git_id(pull_it: Any, hub: FakeHub) -> None:
    hub.files = SAFETENSORS
    hub.fail("config.json", Fault(corrupt_at=3), Fault(corrupt_at=3))
    with pytest.raises(ChecksumMismatch, match="git-sha1"):
        pull_it()


def test_a_repository_of_gguf_files(pull_it: Any, hub: FakeHub, settings: Settings, recorder: Recorder) -> None:
    hub.files = GGUF
    model = pull_it()
    assert names_below(model.location.parent) == ["Some-Model-Q4_K_M.gguf"]
    assert any("Q4_K_M" in note for note in recorder.notes)
    assert resolve(REPO, settings) == model.location


@pytest.mark.parametrize("selection", ["q8_0", "Q8_0", "Some-Model-Q8_0.gguf"])
def test_a_selected_gguf_file(pull_it: Any, hub: FakeHub, selection: str) -> None:
    hub.files = GGUF
    by_colon = pull_it(f"hf.co/{REPO}:{selection}")
    by_option = pull_it(REPO, selection=selection)
    assert by_colon == by_option
    assert by_colon.location.name == "Some-Model-Q8_0.gguf"


def test_a_split_gguf_model(pull_it: Any, hub: FakeHub) -> None:
    hub.files = GGUF
    model = pull_it(f"{REPO}:bf16")
    assert model.location.name == "Some-Model-BF16-00001-of-00002.gguf"
    assert len(model.files) == 2
    assert model.size_bytes == 16_000
    hub.requests.clear()
    assert pull_it(f"{REPO}:BF16") == model
    assert hub.requests == []


def test_a_split_model_with_a_missing_part_is_refused(pull_it: Any, hub: FakeHub) -> None:
    hub.files = {path: content for path, content in GGUF.items() if "00002-of" not in path}
    with pytest.raises(DownloadError, match="not complete"):
        pull_it(f"{REPO}:bf16")


def test_an_unreadable_format_is_refused_before_the_download(pull_it: Any, hub: FakeHub) -> None:
    hub.files = GGUF
    with pytest.raises(UnsupportedModel, match="IQ2_XS"):
        pull_it(f"{REPO}:iq2_xs")
    assert not [path for path, _ in hub.requests if "/resolve/" in path]


def test_an_unknown_selection_lists_what_there_is(pull_it: Any, hub: FakeHub) -> None:
    hub.files = GGUF
    with pytest.raises(UnknownModel) as caught:
        pull_it(f"{REPO}:Q6_K")
    assert "BF16, IQ2_XS, Q4_K_M, Q8_0" in str(caught.value.hint)


def test_several_formats_without_a_preferred_one(pull_it: Any, hub: FakeHub) -> None:
    hub.files = {"a-Q2_K.gguf": b"1", "a-Q3_K_M.gguf": b"2"}
    with pytest.raises(UnknownModel, match="several"):
        pull_it()


def test_pickled_weights_are_refused(pull_it: Any, hub: FakeHub) -> None:
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"\x80"}
    with pytest.raises(UnsupportedModel, match="neither"):
        pull_it()


def test_a_revision(pull_it: Any, hub: FakeHub) -> None:
    hub.files = SAFETENSORS
    assert pull_it(revision="v1.0").name == f"hf.co/{REPO}@v1.0"
    assert any(path.endswith("/revision/v1.0") for path, _ in hub.requests)


def test_an_unknown_repository(pull_it: Any, hub: FakeHub) -> None:
    with pytest.raises(UnknownModel, match="not found"):
        pull_it("no/such")


def test_a_private_repository_hints_at_the_token(pull_it: Any, hub: FakeHub) -> None:
    hub.token = "hf_x"
    with pytest.raises(UnknownModel) as caught:
        pull_it()
    assert "HF_TOKEN" in str(caught.value.hint)


def test_the_token_opens_a_private_repository(hub: FakeHub, settings: Settings) -> None:
    hub.files, hub.token = SAFETENSORS, "hf_x"
    model = pull(REPO, settings, patience=IMPATIENT, environ=hub.environ | {"HF_TOKEN": "hf_x"})
    assert len(model.files) == len(SAFETENSORS)


@pytest.mark.parametrize(
    "path", ["../../evil.safetensors", "/evil.safetensors", "a/../../evil.json", "~/evil.json", "a\\evil.gguf"]
)
def test_a_listing_with_hostile_names_is_refused(pull_it: Any, hub: FakeHub, settings: Settings, path: str) -> None:
    hub.files = SAFETENSORS | {path: b"evil"}
    with pytest.raises(UnknownModel, match="plain relative path"):
        pull_it()
    assert not [name for name in names_below(settings.home) if "evil" in name or name.endswith(".safetensors")]


@pytest.mark.parametrize(
    "entry",
    [{"size": -1, "lfs": None}, {"size": 1 << 60, "lfs": None}, {"oid": "zz", "lfs": None}, {"oid": "", "lfs": None}],
)
def test_a_listing_that_lies_is_refused(pull_it: Any, hub: FakeHub, entry: dict[str, Any]) -> None:
    hub.files = SAFETENSORS
    hub.listed["config.json"] = entry
    with pytest.raises(DownloadError):
        pull_it()


@pytest.mark.parametrize("size", ["3", None, 1.5, {}])
def test_a_listing_of_wrong_types_is_refused(pull_it: Any, hub: FakeHub, size: Any) -> None:
    hub.files = SAFETENSORS
    hub.listed["config.json"] = {"size": size}
    with pytest.raises(DownloadError, match="cannot be read"):
        pull_it()


def test_the_disk_is_checked_first(pull_it: Any, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files = SAFETENSORS
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 0, 100))
    with pytest.raises(ModelTooLarge) as caught:
        pull_it()
    assert "FINBACK_HOME" in str(caught.value.hint)
    assert not [path for path, _ in hub.requests if "/resolve/" in path]


def test_a_disk_that_fills_up_is_a_typed_error(pull_it: Any, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files = SAFETENSORS

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device", "/models")

    monkeypatch.setattr("finback.hub.partial.PartialFile.write", full)
    with pytest.raises(HubError, match="No space left"):
        pull_it()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_that_cannot_be_written_is_a_typed_error(pull_it: Any, hub: FakeHub, settings: Settings) -> None:
    settings.home.mkdir()
    settings.home.chmod(0o500)
    with pytest.raises(HubError, match="denied"):
        pull_it()


def test_a_home_that_is_a_file_is_a_typed_error(pull_it: Any, hub: FakeHub, settings: Settings) -> None:
    settings.home.write_text("")
    with pytest.raises(HubError, match="cannot work on"):
        pull_it()


@pytest.mark.parametrize(
    "text", ["xyzzy", "deepseek-r1:7b", "https://example.com/a/b", "./nothing", "nothing.gguf", ""]
)
def test_what_is_no_model_is_a_typed_error(pull_it: Any, hub: FakeHub, text: str) -> None:
    with pytest.raises(UnknownModel):
        pull_it(text)
    assert hub.requests == []


def gguf_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"GGUF" + bytes(100))
    return path


def test_a_local_file_is_registered_and_not_copied(pull_it: Any, settings: Settings, tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "own" / "My model.Q4_0.gguf")
    model = pull_it(str(path))
    assert model.name == "local/My-model.Q4_0"
    assert model.linked
    assert resolve("local/My-model.Q4_0", settings) == resolve("My-model.Q4_0", settings) == path
    assert names_below(settings.home / "models" / "local%2FMy-model.Q4_0") == ["manifest.json"]
    assert pull_it(str(path)).location == path


def test_a_local_folder_is_registered(pull_it: Any, settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    for path, content in (SAFETENSORS | {"evil.py": b"", "pytorch_model.bin": b""}).items():
        (folder / path).write_bytes(content)
    model = pull_it(str(folder), name="mine")
    assert resolve("mine", settings) == folder
    assert sorted(Path(file.path).name for file in model.files) == sorted(SAFETENSORS)


def test_a_folder_with_one_gguf_model(pull_it: Any, tmp_path: Path) -> None:
    parts = [gguf_file(tmp_path / "split" / f"m-0000{n}-of-00002.gguf") for n in (1, 2)]
    model = pull_it(str(tmp_path / "split"))
    assert model.location == parts[0]
    assert len(model.files) == 2


def test_two_models_do_not_share_a_name(pull_it: Any, tmp_path: Path) -> None:
    pull_it(str(gguf_file(tmp_path / "a" / "m.gguf")))
    with pytest.raises(UnknownModel, match="already") as caught:
        pull_it(str(gguf_file(tmp_path / "b" / "m.gguf")))
    assert "--name" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "-x", "a b", ".x"])
def test_names_for_local_models_are_plain(pull_it: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(UnknownModel, match="cannot be a name"):
        pull_it(str(gguf_file(tmp_path / "m.gguf")), name=name)


@pytest.mark.parametrize("layout", [[], ["a.gguf", "b.gguf"], ["model.safetensors"], ["config.json"], ["x.bin"]])
def test_a_folder_without_a_model(pull_it: Any, tmp_path: Path, layout: list[str]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in layout:
        (folder / name).touch()
    with pytest.raises(UnsupportedModel):
        pull_it(str(folder))


def test_a_file_of_another_kind(pull_it: Any, tmp_path: Path) -> None:
    (tmp_path / "x.bin").touch()
    with pytest.raises(UnsupportedModel, match="not a GGUF"):
        pull_it(str(tmp_path / "x.bin"))


@pytest.mark.parametrize(
    ("path", "stated"),
    [
        ("DeepSeek-R1-Distill-Qwen-7B-Q4_K_M.gguf", "Q4_K_M"),
        ("DeepSeek-V2-Lite-Chat.Q8_0.gguf", "Q8_0"),
        ("UD-Q2_K_XL/DeepSeek-V3-0324-UD-Q2_K_XL-00001-of-00006.gguf", "UD-Q2_K_XL"),
        ("x-bf16.gguf", "BF16"),
        ("x.i1-IQ2_XS.gguf", "IQ2_XS"),
        ("x-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("Qwen3-8B.gguf", None),
        ("model-f16-00001-of-00003.gguf", "F16"),
    ],
)
def test_the_format_in_a_file_name(path: str, stated: str | None) -> None:
    assert gguf_format(path) == stated


def test_the_record_is_plain_json(pull_it: Any, hub: FakeHub, settings: Settings) -> None:
    hub.files = GGUF
    pull_it()
    (path,) = settings.home.glob("models/*/manifest.json")
    record = json.loads(path.read_text())
    assert record["schema"] == 1
    assert record["location"] == "Some-Model-Q4_K_M.gguf"
    assert record["files"][0]["sha256"]


def test_every_error_is_a_finback_error() -> None:
    assert issubclass(ChecksumMismatch, FinbackError)
