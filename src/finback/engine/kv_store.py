"""Blocks of the key-value cache on disk, so that computed beginnings survive a restart.

A file holds one block and is called by the block's name (:mod:`finback.engine.kv_cache`), a digest under a key that is
drawn once for the folder: names tell neither tenants nor text, and what belongs to another model, tenant, processor or
layout is never asked for. A file appears whole or not at all (written beside its place, then renamed) and carries a
digest of its content under the same key; one that is damaged is dropped with a warning. Files are as private as the
prompts that they were computed from: only their owner may read them.

The folder has a bound; what was used longest ago goes first. Failures of the disk are logged and cost speed only.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import shutil
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from finback.engine.kv_cache import NAME_BYTES, root_name

log = logging.getLogger("finback.engine")

LAYOUT = "1"  # of what a block's bytes mean
MAGIC = b"FINBKKV1"
DIGEST_BYTES = 32
HEADER_BYTES = len(MAGIC) + DIGEST_BYTES
KEY_FILE = "key"
KEY_BYTES = 32
SUFFIX = ".kv"
UNFINISHED = ".part"


class PrefixStore:
    """A folder of blocks. Invariant: ``_sizes`` holds what this process knows of, least recently used first."""

    def __init__(self, folder: Path, *, limit_bytes: int, facts: tuple[str, ...]) -> None:
        """``facts``: everything besides tenant, tokens and roles that a block's bytes depend on. May raise OSError."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._facts = (LAYOUT, *facts)
        self._key = _key_of(folder)
        self._sizes = _scan(folder)
        self._used = sum(self._sizes.values())
        # Half of what is free stays free for others.
        self.limit_bytes = min(limit_bytes, self._used + shutil.disk_usage(folder).free // 2)
        self._make_room(0)

    def root(self, tenant: str) -> bytes:
        """Where the names of a tenant's blocks start."""
        return root_name(self._key, *self._facts, tenant)

    def __contains__(self, name: bytes) -> bool:
        return name in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def used_bytes(self) -> int:
        """What the files take."""
        return self._used

    def read(self, name: bytes, size: int) -> memoryview | None:
        """The block of this name, ``size`` bytes; None if it is not there or damaged."""
        if name not in self._sizes:
            return None
        try:
            stored = memoryview(self._path(name).read_bytes())
            os.utime(self._path(name))
        except OSError as error:  # another process may have dropped it
            log.warning("a stored prefix cannot be read: %s", error)
            self._drop(name)
            return None
        header, block = stored[:HEADER_BYTES], stored[HEADER_BYTES:]
        if len(block) != size or not hmac.compare_digest(bytes(header), self._header(name, [block])):
            log.warning("the stored prefix %s is damaged and was dropped", self._path(name))
            self._drop(name)
            return None
        self._sizes.move_to_end(name)
        return block

    def write(self, name: bytes, parts: Iterable[bytes | memoryview]) -> bool:
        """Keep a block; False if it cannot be kept."""
        parts = list(parts)
        size = HEADER_BYTES + sum(len(part) for part in parts)
        if name in self._sizes:
            self._sizes.move_to_end(name)
            return True
        if size > self.limit_bytes:
            return False
        self._make_room(size)
        unfinished = self._folder / f"{name.hex()}.{os.getpid()}{UNFINISHED}"
        try:
            with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(self._header(name, parts))
                file.writelines(parts)
            unfinished.replace(self._path(name))
        except OSError as error:
            log.warning("a prefix cannot be stored: %s", error)
            unfinished.unlink(missing_ok=True)
            return False
        self._sizes[name] = size
        self._used += size
        return True

    def _header(self, name: bytes, parts: Iterable[bytes | memoryview]) -> bytes:
        digest = hmac.new(self._key, name, "sha256")  # processors have instructions for it
        for part in parts:
            digest.update(part)
        return MAGIC + digest.digest()

    def _path(self, name: bytes) -> Path:
        return self._folder / (name.hex() + SUFFIX)

    def _make_room(self, size: int) -> None:
        while self._sizes and self._used + size > self.limit_bytes:
            self._drop(next(iter(self._sizes)))

    def _drop(self, name: bytes) -> None:
        self._used -= self._sizes.pop(name)
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError as error:
            log.warning("a stored prefix cannot be deleted: %s", error)


def open_store(folder: Path, *, limit_bytes: int, facts: tuple[str, ...]) -> PrefixStore | None:
    """The store in ``folder``, or None, with a warning, where there can be none."""
    try:
        return PrefixStore(folder, limit_bytes=limit_bytes, facts=facts)
    except OSError as error:
        log.warning("prefixes are not stored: %s", error)
        return None


def _key_of(folder: Path) -> bytes:
    """The folder's key; drawn by whoever comes first. With a new key, what is there is never asked for again."""
    path = folder / KEY_FILE
    for _ in range(2):
        try:
            key = path.read_bytes()
            if len(key) == KEY_BYTES:
                return key
            log.warning("the key of %s is damaged; a new one is drawn", folder)
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            pass
        _write_key(path)
    return path.read_bytes()


def _write_key(path: Path) -> None:
    """Put a fresh key in place, unless another process was faster."""
    fresh = path.with_name(f"{KEY_FILE}.{os.getpid()}{UNFINISHED}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES))
        os.fsync(file.fileno())
    try:
        os.link(fresh, path)
    except FileExistsError:
        pass
    finally:
        fresh.unlink()


def _scan(folder: Path) -> OrderedDict[bytes, int]:
    """Names and sizes of what is there, least recently used first. Removes what a crash left unfinished."""
    found: list[tuple[int, bytes, int]] = []
    for entry in os.scandir(folder):
        if entry.name.endswith(UNFINISHED):
            _remove_if_abandoned(Path(entry.path))
        name = _name_in(entry.name)
        if name is not None and entry.is_file(follow_symlinks=False):
            stat = entry.stat(follow_symlinks=False)
            found.append((stat.st_mtime_ns, name, stat.st_size))
    return OrderedDict((name, size) for _, name, size in sorted(found))


def _remove_if_abandoned(path: Path) -> None:
    writer = path.name.removesuffix(UNFINISHED).rpartition(".")[2]
    if not (writer.isdecimal() and Path(f"/proc/{writer}").exists()):
        path.unlink(missing_ok=True)


def _name_in(file_name: str) -> bytes | None:
    if not file_name.endswith(SUFFIX):
        return None
    try:
        name = bytes.fromhex(file_name.removesuffix(SUFFIX))
    except ValueError:
        return None
    return name if len(name) == NAME_BYTES else None
