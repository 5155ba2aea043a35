"""Bounded access to files that may lie: regular files only, exact reads, JSON with limits, names that cannot travel.

A model's files come from strangers. Nothing here trusts a count, a name or a length before it was compared with the
size of the file that states it, and nothing allocates by such a number first. Weights are read with ``pread`` and not
through a mapping: a file that shrinks then gives an error, where a mapping would give a signal.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finback.errors import MalformedFile, ModelError, ModelTooLarge, UnknownModel
from finback.weights.formats import FORMATS

Bytes = npt.NDArray[np.uint8]

MAX_NAME_CHARACTERS = 512
MAX_JSON_DEPTH = 64
MAX_READ_BYTES = 1 << 35  # one tensor, or the rows of it that are asked for
AGAIN_HINT = "the file is damaged or was cut short: pull the model again"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. Invariant: ``nbytes`` fits format and shape, and offset + nbytes was inside the file.

    ``shape`` is in NumPy's order (slowest dimension first; experts are [experts, out, in]).
    """

    name: str
    format: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int

    @property
    def rows(self) -> int:
        """All dimensions but the last, multiplied: a vector is one row."""
        return self.nbytes // self.row_bytes

    @property
    def row_bytes(self) -> int:
        return FORMATS[self.format].nbytes(self.shape[-1:])

    @property
    def elements(self) -> int:
        info = FORMATS[self.format]
        return self.nbytes // info.block_bytes * info.block_elements


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A regular file as it was when it was first looked at; it is reopened for each use and must still be the same."""

    path: Path
    size: int
    mtime_ns: int
    identity: tuple[int, int]  # device and inode

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A file descriptor of the unchanged file."""
        changed = MalformedFile(f"{self.path} changed while the model was loading", hint="load the model again")
        try:
            descriptor = _open(self.path)
        except UnknownModel:
            raise changed from None
        try:
            if _describe(self.path, descriptor) != self:
                raise changed
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Exactly ``nbytes`` bytes."""
        out = np.empty(nbytes, np.uint8)
        self.read_into(offset, out)
        return out.tobytes()

    def read_into(self, offset: int, out: Bytes) -> None:
        """Fill ``out`` from ``offset`` on."""
        with self.opened() as descriptor:
            fill(descriptor, offset, out, self.path)


def fill(descriptor: int, offset: int, out: Bytes, path: Path) -> None:
    """Read until ``out`` is full; a file that ends before is an error."""
    view = out.data.cast("B")
    done = 0
    while done < len(view):
        try:
            count = os.preadv(descriptor, [view[done : done + (1 << 30)]], offset + done)
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror}") from error
        if count == 0:
            raise MalformedFile(f"{path} ends at byte {offset + done}, before its data does", hint=AGAIN_HINT)
        done += count


def look_at(path: Path) -> SourceFile:
    """The file at ``path``, which must be a regular file that can be read."""
    descriptor = _open(path)
    try:
        return _describe(path, descriptor)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    """Open without waiting: a pipe or a device in a model's folder must not hang the program."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError as error:
        raise UnknownModel(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot open {path}: {getattr(error, 'strerror', None) or error}") from error


def _describe(path: Path, descriptor: int) -> SourceFile:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise MalformedFile(f"{path} is not a regular file")
    return SourceFile(path, found.st_size, found.st_mtime_ns, (found.st_dev, found.st_ino))


def member(folder: Path, name: str) -> Path:
    """The path of a file that a model names: a plain name, in the model's own folder.

    A symbolic link may not lead out of the folder. The one exception is the cache layout of Hugging Face,
    ``snapshots/<revision>/name -> ../../blobs/<digest>``.
    """
    plain = 0 < len(name) <= 255 and name.isprintable() and not set(name) & set("/\\:") and name.strip(". ")
    if not plain:
        raise MalformedFile(f"{folder} refers to a file called {quoted(name)}, which is not a plain file name")
    real = Path(os.path.realpath(folder / name))
    home = Path(os.path.realpath(folder))
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if real.parent not in (home, blobs):
        raise MalformedFile(f"{quoted(name)} in {folder} is a link that leads out of the model's folder")
    return real


def quoted(text: str) -> str:
    """Text from a file, fit for a message: escaped and short."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def checked_name(name: str, what: str, path: Path) -> str:
    """A tensor's or key's name: not empty, short, printable."""
    if not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        raise MalformedFile(f"{path}: {quoted(name)} cannot be the name of a {what}")
    return name


def check_apart(tensors: Sequence[TensorInfo], path: Path) -> None:
    """No two tensors of a file share a byte."""
    previous: TensorInfo | None = None
    for tensor in sorted(tensors, key=lambda t: t.offset):
        if previous is not None and tensor.offset < previous.offset + previous.nbytes:
            raise MalformedFile(f"{path}: tensors {quoted(previous.name)} and {quoted(tensor.name)} overlap")
        previous = tensor


def empty_bytes(nbytes: int, what: str) -> Bytes:
    """Room for a tensor; what memory cannot hold is a typed error."""
    try:
        if nbytes > MAX_READ_BYTES:
            raise MemoryError
        return np.empty(nbytes, np.uint8)
    except MemoryError:
        raise ModelTooLarge(f"{what} takes {nbytes} bytes, more than memory can hold at once") from None


def read_small(path: Path, limit_bytes: int) -> bytes:
    """A whole small file."""
    source = look_at(path)
    if source.size > limit_bytes:
        raise MalformedFile(f"{path} has {source.size} bytes; at most {limit_bytes} are accepted")
    return source.read(0, source.size)


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object: UTF-8, no repeated keys, no NaN, nested at most MAX_JSON_DEPTH deep."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise MalformedFile(f"{where} is nested too deeply") from None
    except ValueError as error:  # syntax, encoding, numbers of more digits than Python converts
        raise MalformedFile(f"{where} is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise MalformedFile(f"{where} must be a JSON object")
    _check_depth(value, where)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _check_depth(value: dict[str, Any], where: str) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise MalformedFile(f"{where} is nested more than {MAX_JSON_DEPTH} deep")


def digest(*parts: bytes) -> str:
    """SHA-256 over parts, each with its length in front so that no two lists of parts collide."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()
