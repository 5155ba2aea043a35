"""Records on disk: what is pulled, what is half pulled, what removing removes, and who may work on it."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from finback.config import Settings
from finback.errors import HubError, UnknownModel
from finback.hub import resolve
from finback.hub.store import PulledModel, Store, StoredFile, now

NAME = "r1-distill-qwen:7b-q4_k_m"


@pytest.fixture
def store(settings: Settings) -> Store:
    return Store(settings.home)


def put(store: Store, name: str = NAME, content: bytes = b"GGUF") -> PulledModel:
    path = store.files_folder(name) / "x.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    model = PulledModel(name, "somewhere", "c0ffee", now(), path, (StoredFile("x.gguf", len(content), "ab"),))
    store.record(model)
    return model


def test_what_is_recorded_is_found_again(store: Store) -> None:
    model = put(store)
    assert store.find(NAME) == model
    assert store.models() == [model]
    assert model.size_bytes == 4
    assert store.find("other") is None
    assert store.incomplete() == []


def test_an_empty_home_has_no_models(store: Store) -> None:
    assert store.models() == []
    assert store.incomplete() == []


def test_names_do_not_become_paths(store: Store) -> None:
    names = ("../../x", "/etc", "a/b:c", "..", ".", "", ".locks", "%2E", "a/b", "a%2Fb", "a:b")
    folders = {store.folder(name).name for name in names}
    assert len(folders) == len(names)
    assert not any("/" in folder or folder.startswith(".") for folder in folders)


@pytest.mark.parametrize("name", ["..", ".", ""])
def test_dots_are_no_names(store: Store, name: str) -> None:
    put(store)
    assert store.find(name) is None
    with pytest.raises(UnknownModel):
        store.remove(name)
    assert store.find(NAME)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"schema": 2}', '{"schema": 1, "files": 3}', "[" * 100_000, '{"schema": 1, "files": []}'],
)
def test_a_broken_record_means_not_pulled(store: Store, text: str) -> None:
    put(store)
    (store.folder(NAME) / "manifest.json").write_text(text)
    assert store.find(NAME) is None
    assert store.models() == []
    assert [broken.name for broken in store.incomplete()] == [NAME]


@pytest.mark.parametrize("location", ["../../../etc/passwd", "/etc/passwd"])
def test_a_record_cannot_point_outside(store: Store, location: str) -> None:
    put(store)
    path = store.folder(NAME) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"location": location}))
    assert store.find(NAME) is None


def test_removing_frees_the_folder(store: Store) -> None:
    put(store, content=b"x" * 5000)
    assert store.remove(NAME) > 5000
    assert store.models() == []
    assert not store.folder(NAME).exists()


def test_removing_what_is_not_there(store: Store) -> None:
    with pytest.raises(UnknownModel):
        store.remove(NAME)


def test_removing_a_registered_model_leaves_its_files(store: Store, tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(b"GGUF")
    store.record(PulledModel("local/own", str(own), None, now(), own, (StoredFile(str(own), 4, None),), linked=True))
    store.remove("local/own")
    assert own.exists()
    assert store.models() == []


def test_one_at_a_time(store: Store) -> None:
    put(store)
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        with store.lock(NAME, on_wait=waiting.set):
            order.append("second")

    with store.lock(NAME):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(5)
        with pytest.raises(HubError, match="in use"):
            store.remove(NAME)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]


def test_resolve_finds_what_is_pulled(store: Store, settings: Settings) -> None:
    model = put(store)
    for text in (NAME, NAME.upper(), "r1-distill-qwen:7b"):
        assert resolve(text, settings) == model.location


def test_resolve_takes_paths(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.touch()
    assert resolve(file, settings) == file
    assert resolve(str(tmp_path), settings) == tmp_path


def test_a_repository_is_found_with_and_without_its_host(store: Store, settings: Settings) -> None:
    model = put(store, "hf.co/a/b-GGUF:Q8_0")
    for text in ("hf.co/a/b-GGUF:Q8_0", "a/b-GGUF:q8_0", "a/b-GGUF", "hf.co/a/b-GGUF"):
        assert resolve(text, settings) == model.location
    put(store, "hf.co/a/b-GGUF:Q4_0")
    with pytest.raises(UnknownModel):
        resolve("a/b-GGUF", settings)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("smollm2", "finback pull smollm2:135m-q4_1"),
        ("smolm2:135m", "near it: smollm2:135m-q4_1"),
        ("deepseek-r1:7b", "finback pull r1-distill-qwen:7b-q4_k_m"),
        ("someone/Some-Model", "finback pull someone/Some-Model"),
        ("xyzzy", "finback list --catalog"),
    ],
)
def test_resolve_says_what_to_do(settings: Settings, text: str, hint: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        resolve(text, settings)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("text", ["./nothing.gguf", "/no/such", "nothing.gguf", "~/no-such-model"])
def test_missing_paths_are_named(settings: Settings, text: str) -> None:
    with pytest.raises(UnknownModel, match="no such file"):
        resolve(text, settings)


def test_a_registered_model_that_moved_is_named(store: Store, settings: Settings, tmp_path: Path) -> None:
    gone = tmp_path / "gone.gguf"
    store.record(PulledModel("local/gone", str(gone), None, now(), gone, (), linked=True))
    with pytest.raises(UnknownModel, match="gone") as caught:
        resolve("local/gone", settings)
    assert "finback rm" in str(caught.value.hint)
