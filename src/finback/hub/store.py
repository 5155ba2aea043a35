"""Where pulled models live, and what is known about each: the only writer of ``models/`` below the user's
home.

    models/<quoted name>/manifest.json   written last: a model without it is not pulled
    models/<quoted name>/files/...       the files, each under its final name only once it was verified
    models/.locks/<quoted name>          held while a pull or a removal works on the folder

A registered local model has a manifest that points at the user's own files; they are never copied, moved or
deleted.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from finback.errors import HubError, UnknownModel
from finback.hub.names import safe_relative

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a model: path below ``files/`` (absolute for a registered local model)."""

    path: str
    size_bytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class PulledModel:
    """What the manifest says. Invariant: ``location`` is what a loader opens, a GGUF file or a folder."""

    name: str
    source: str
    revision: str | None
    pulled_at: str
    location: Path
    files: tuple[StoredFile, ...]
    linked: bool = False

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class Incomplete:
    """A pull that was broken off: its folder has files or parts but no manifest."""

    name: str
    size_bytes: int


def now() -> str:
    """The time, in UTC, as manifests carry it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Store:
    """The models below ``home``. Holds no state of its own: every question is answered from the disk."""

    def __init__(self, home: Path) -> None:
        self.root = home / "models"

    def folder(self, name: str) -> Path:
        """The folder of ``name``; quoting keeps separators and dots out, so a name is never a path."""
        return self.root / _quoted(name)

    def files_folder(self, name: str) -> Path:
        return self.folder(name) / "files"

    def find(self, name: str) -> PulledModel | None:
        """The pulled model of exactly this name, or None."""
        return _read_manifest(self.folder(name))

    def models(self) -> list[PulledModel]:
        """Every pulled model, by name."""
        found = (_read_manifest(folder) for folder in self._folders())
        return sorted((model for model in found if model), key=lambda model: model.name)

    def incomplete(self) -> list[Incomplete]:
        """Pulls that were broken off and can be resumed or removed."""
        broken = (folder for folder in self._folders() if _read_manifest(folder) is None)
        return [Incomplete(unquote(folder.name), _disk_use(folder)) for folder in broken]

    def record(self, model: PulledModel) -> None:
        """Write the manifest: from here on the model is pulled."""
        folder = self.folder(model.name)
        folder.mkdir(parents=True, exist_ok=True)
        location = str(model.location) if model.linked else _relative(model.location, folder / "files")
        manifest = asdict(model) | {"schema": SCHEMA, "location": location}
        write_json(folder / "manifest.json", manifest)

    def remove(self, name: str) -> int:
        """Delete what was pulled under ``name``; the bytes freed. Files of a registered local model stay."""
        folder = self.folder(name)
        if not folder.is_dir():
            raise UnknownModel(f"no pulled model is called {name[:200]!r}", hint="`finback list` shows them")
        with self.lock(name, wait=False):
            freed = _disk_use(folder)
            # The manifest goes first: a removal cut short leaves an incomplete model, not a broken one.
            (folder / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(folder)
        return freed

    @contextmanager
    def lock(self, name: str, *, wait: bool = True, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the folder of ``name`` alone. The kernel drops the lock if the process dies."""
        locks = self.root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with open(locks / _quoted(name), "w") as handle:
            if not _try_lock(handle.fileno()):
                if not wait:
                    raise HubError(f"{name} is in use by another finback pull", hint="wait for it to end, or stop it")
                if on_wait:
                    on_wait()
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _folders(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        return sorted(p for p in self.root.iterdir() if p.is_dir() and not p.name.startswith("."))


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` as a whole: a reader sees the old text or the new, never a half."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_manifest(folder: Path) -> PulledModel | None:
    """The manifest, or None where it is missing or unreadable: pulling again repairs either."""
    try:
        raw = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if raw["schema"] != SCHEMA:
            return None
        files = tuple(StoredFile(f["path"], int(f["size_bytes"]), f["sha256"]) for f in raw["files"])
        location = _location(folder, raw["location"], linked=raw["linked"])
        model = PulledModel(
            raw["name"], raw["source"], raw["revision"], raw["pulled_at"], location, files, raw["linked"]
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UnknownModel):
        return None
    return model if _quoted(model.name) == folder.name else None


def _location(folder: Path, text: str, *, linked: bool) -> Path:
    if linked:
        return Path(text)
    return folder / "files" / safe_relative(text) if text else folder / "files"


def _relative(path: Path, base: Path) -> str:
    text = path.relative_to(base).as_posix()
    return "" if text == "." else text


def _disk_use(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _quoted(name: str) -> str:
    """``name`` as one visible path component, a different one for every name."""
    text = quote(name, safe="") or "%"
    return "%2E" + text[1:] if text.startswith(".") else text


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
