"""A file on its way: bytes in ``NAME.part``, their origin in ``NAME.part.json``, and ``NAME`` itself only
once verified.

Bytes are hashed as they are written and written unbuffered, so a killed process loses nothing that it had
received. What is already there after a restart is read and hashed again: a resumed file is verified as a
whole, like any other.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from finback.errors import ChecksumMismatch
from finback.hub.store import sync_folder, write_json

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Digest:
    """What a file must hash to: ``sha256``, or ``git-sha1`` (the id of a git blob) for small files kept in
    git itself.
    """

    algorithm: str
    value: str


class _Hasher:
    """SHA-256 always; a git blob id beside it where that is all the source publishes."""

    def __init__(self, size_bytes: int, digest: Digest | None) -> None:
        self.sha256 = hashlib.sha256()
        self._expected = digest
        self._git = None
        if digest and digest.algorithm == "git-sha1":
            self._git = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)

    def update(self, chunk: bytes | memoryview) -> None:
        self.sha256.update(chunk)
        if self._git:
            self._git.update(chunk)

    @property
    def value(self) -> str:
        return (self._git or self.sha256).hexdigest()

    def check(self, name: str) -> None:
        if self._expected and self.value != self._expected.value:
            raise ChecksumMismatch(
                f"{name} does not have the published digest: {self._expected.algorithm} {self.value}, "
                f"expected {self._expected.value}",
                hint="something changed the bytes on the way; try again later, or from another network",
            )


class PartialFile:
    """One file that grows to ``size_bytes``. Invariant: ``received`` bytes are on disk, hashed, and come from
    ``etag``.
    """

    def __init__(self, target: Path, size_bytes: int, digest: Digest | None) -> None:
        self.target = target
        self.size_bytes = size_bytes
        self.digest = digest
        self.part = target.with_name(target.name + ".part")
        self.received = 0
        self.etag: str | None = None
        self._state = target.with_name(target.name + ".part.json")
        self._hasher = _Hasher(size_bytes, digest)
        self._file: Any = None

    def __enter__(self) -> Self:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.part, "r+b" if self.part.exists() else "w+b", buffering=0)
        state = self._read_state()
        if state is None or os.fstat(self._file.fileno()).st_size > self.size_bytes:
            self.restart(None)
        else:
            self.etag = state["etag"]
            self._hash_existing()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def missing_bytes(self) -> int:
        return self.size_bytes - self.received

    def restart(self, etag: str | None) -> None:
        """Throw the bytes away and begin again from what ``etag`` names. Truncated before the state is
        written: a kill between the two leaves an empty part, never bytes under the wrong tag."""
        self._file.seek(0)
        self._file.truncate()
        self.received = 0
        self._hasher = _Hasher(self.size_bytes, self.digest)
        self.etag = etag
        write_json(self._state, {"etag": etag, "size_bytes": self.size_bytes, "digest": _text(self.digest)})

    def write(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            written = self._file.write(view)
            self._hasher.update(view[:written])
            self.received += written
            view = view[written:]

    def commit(self) -> str:
        """Verify, make durable, give the file its name; its SHA-256. A file that fails is emptied and never
        named.
        """
        try:
            self._hasher.check(self.target.name)
        except ChecksumMismatch:
            self.restart(None)
            raise
        os.fsync(self._file.fileno())
        os.replace(self.part, self.target)
        sync_folder(self.target.parent)
        self._state.unlink(missing_ok=True)
        return self._hasher.sha256.hexdigest()

    def _read_state(self) -> dict[str, Any] | None:
        """The state, if it speaks of the file that is wanted now."""
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            same = state["size_bytes"] == self.size_bytes and state["digest"] == _text(self.digest)
            usable = same and (state["etag"] is None or isinstance(state["etag"], str))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return state if usable else None

    def _hash_existing(self) -> None:
        self._file.seek(0)
        while chunk := self._file.read(_READ_BYTES):
            self._hasher.update(chunk)
            self.received += len(chunk)


def part_bytes(target: Path) -> int:
    """Bytes of ``target`` that an earlier attempt left behind."""
    try:
        return target.with_name(target.name + ".part").stat().st_size
    except OSError:
        return 0


def _text(digest: Digest | None) -> str | None:
    return f"{digest.algorithm}:{digest.value}" if digest else None
