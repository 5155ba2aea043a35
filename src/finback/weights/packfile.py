"""The pack cache file: a safetensors container that is written once, appears whole or not at all, and is then mapped.

Layout: the header, padded so that the data begin on a page; then one ``U8`` tensor per field, padded to whole pages,
so that the tensors are aligned and the container has no holes. The header's metadata hold the key (what was packed,
how, and by which layout) and the report.

Writing: ``<name>.partial`` is locked, filled, synced and renamed. A process that dies leaves a partial file whose
lock is gone, which the next packer reuses or removes; one that finds the lock taken waits and then maps the result.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finback.errors import FinbackError, ModelError, ModelTooLarge
from finback.weights import safetensors
from finback.weights.plan import ALIGNMENT_BYTES, Plan, aligned
from finback.weights.source import look_at

Bytes = npt.NDArray[np.uint8]

SUFFIX = ".safetensors"
PARTIAL = ".partial"
SPARE_BYTES = 64 << 20  # of disk, beside the pack itself
ROOM_HINT = "free some space, or set FINBACK_HOME to a folder on a larger disk"


@dataclass(frozen=True, slots=True)
class ReportLine:
    """What became of one field. ``error``: relative RMS error of a narrower format; None where values were kept."""

    field: str
    published: str
    tile: str
    note: str
    error: float | None


@dataclass(frozen=True, slots=True)
class PackIdentity:
    """What makes a pack the right one. Invariant: packs with equal keys hold equal bytes."""

    key: str
    source: str  # absolute path of the checkpoint: packs of its earlier states are removed
    format: str  # "published", "q8" or "q4"

    @property
    def file_name(self) -> str:
        return f"{self.key[:32]}{SUFFIX}"


# ---- reading ----


def open_pack(folder: Path, identity: PackIdentity, plan: Plan) -> tuple[mmap.mmap, int, tuple[ReportLine, ...]] | None:
    """Map a sound pack of this identity: the mapping, where its data begin, and the report. None if there is none."""
    path = folder / identity.file_name
    header = _sound_header(path)
    if header is None or header.metadata.get("finback.key") != identity.key:
        return None
    places = {tensor.name: (tensor.offset, tensor.nbytes) for tensor in header.tensors}
    start = min((offset for offset, _ in places.values()), default=0)
    expected = {f.source.field: (start + f.offset, f.padded_bytes) for f in plan.fields}
    report = _parse_report(header.metadata.get("finback.report", ""))
    if places != expected or start % ALIGNMENT_BYTES or report is None:
        return None
    return _map(path, start + plan.nbytes), start, report


def stored_report(folder: Path, identity: PackIdentity) -> tuple[ReportLine, ...] | None:
    """The report of a pack that was made before, or None."""
    header = _sound_header(folder / identity.file_name)
    if header is None or header.metadata.get("finback.key") != identity.key:
        return None
    return _parse_report(header.metadata.get("finback.report", ""))


def _sound_header(path: Path) -> safetensors.SafetensorsHeader | None:
    """The header, if the file is there and as long as it says; a damaged pack counts as none."""
    try:
        return safetensors.read_header(look_at(path))
    except (FinbackError, OSError):
        return None


def _parse_report(text: str) -> tuple[ReportLine, ...] | None:
    try:
        return tuple(ReportLine(**line) for line in json.loads(text))
    except (ValueError, TypeError):
        return None


def _map(path: Path, nbytes: int) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return mmap.mmap(descriptor, nbytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        raise ModelTooLarge(f"cannot map {nbytes} bytes of {path}: {error}") from error
    finally:
        os.close(descriptor)


# ---- writing ----


class PackWriter:
    """A locked partial file, to be filled and then published."""

    def __init__(self, folder: Path, identity: PackIdentity, plan: Plan, descriptor: int) -> None:
        self._folder = folder
        self._identity = identity
        self._plan = plan
        self._descriptor = descriptor
        # Numbers of the report are at most this long, so the header's size is known before they are.
        placeholder = {field.source.field: -1.23457e-308 for field in plan.fields}
        self._data_start = aligned(8 + len(self._header(_report(plan, placeholder))))

    def reserve(self) -> None:
        """Take the disk space now, so that a full disk shows before the work."""
        with _disk_errors(self._folder):
            os.ftruncate(self._descriptor, 0)
            os.posix_fallocate(self._descriptor, 0, self._data_start + self._plan.nbytes)

    def write(self, offset: int, data: Bytes) -> None:
        """Put bytes at an offset of the data."""
        view = data.data.cast("B")
        with _disk_errors(self._folder):
            while view:
                count = os.pwrite(self._descriptor, view[: 1 << 30], self._data_start + offset)
                view, offset = view[count:], offset + count

    def publish(self, errors: Mapping[str, float]) -> None:
        """Write the header, sync, and give the file its name."""
        text = self._header(_report(self._plan, errors)).ljust(self._data_start - 8)
        with _disk_errors(self._folder):
            os.pwrite(self._descriptor, len(text).to_bytes(8, "little") + text, 0)
            os.fsync(self._descriptor)
            os.replace(self._partial, self._folder / self._identity.file_name)
            _sync_folder(self._folder)

    @property
    def _partial(self) -> Path:
        return self._folder / (self._identity.file_name + PARTIAL)

    def _header(self, report: Sequence[ReportLine]) -> bytes:
        metadata = {
            "format": "finback",
            "finback.key": self._identity.key,
            "finback.source": self._identity.source,
            "finback.format": self._identity.format,
            "finback.report": json.dumps([asdict(line) for line in report]),
        }
        entries: dict[str, object] = {"__metadata__": metadata}
        for field in self._plan.fields:
            entries[field.source.field] = {
                "dtype": "U8",
                "shape": [field.padded_bytes],
                "data_offsets": [field.offset, field.offset + field.padded_bytes],
            }
        return json.dumps(entries).encode()


@contextmanager
def locked_writer(folder: Path, identity: PackIdentity, plan: Plan) -> Iterator[PackWriter]:
    """Wait for the right to write this pack; whatever goes wrong, no partial file of ours stays behind."""
    path = folder / (identity.file_name + PARTIAL)
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path)
    try:
        yield PackWriter(folder, identity, plan, descriptor)
    finally:
        # After publishing, this name is gone, or already belongs to the next packer.
        if _is_at(descriptor, path):
            with suppress(OSError):
                path.unlink()
        os.close(descriptor)


def check_room(folder: Path, plan: Plan) -> None:
    """Raise ModelTooLarge unless the disk has room for the pack."""
    existing = next((parent for parent in (folder, *folder.parents) if parent.exists()), Path("/"))
    with _disk_errors(folder):
        free = shutil.disk_usage(existing).free
    needed = plan.nbytes + SPARE_BYTES
    if free < needed:
        raise ModelTooLarge(
            f"the packed model takes {_gigabytes(needed)} in {folder}, but only {_gigabytes(free)} are free there",
            hint=ROOM_HINT,
        )


def remove_superseded(folder: Path, identity: PackIdentity) -> None:
    """Delete packs of earlier states of the same source in the same format, and partial files of dead processes."""
    for path in folder.glob(f"*{SUFFIX}"):
        header = _sound_header(path) if path.name != identity.file_name else None
        if header is None:
            continue
        theirs = (header.metadata.get("finback.source"), header.metadata.get("finback.format"))
        if theirs == (identity.source, identity.format):
            with suppress(OSError):
                path.unlink()  # processes that have it mapped keep it until they end
    for path in folder.glob(f"*{SUFFIX}{PARTIAL}"):
        _remove_if_dead(path)


def remove_packs_of(folder: Path, source: Path) -> int:
    """Delete every pack that was made from the checkpoint at ``source``, in any format; the bytes freed."""
    freed = 0
    for path in folder.glob(f"*{SUFFIX}"):
        header = _sound_header(path)
        if header is not None and header.metadata.get("finback.source") == str(source.absolute()):
            freed += path.stat().st_size
            path.unlink()  # processes that have it mapped keep it until they end
    return freed


def _remove_if_dead(path: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError: somebody is writing it
            if _is_at(descriptor, path):
                path.unlink()
        finally:
            os.close(descriptor)


def _lock(path: Path) -> int:
    """An exclusive lock on the file that has this name now: while we waited, its owner may have renamed it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _report(plan: Plan, errors: Mapping[str, float]) -> list[ReportLine]:
    return [
        ReportLine(f.source.field, f.source.format, f.tile_format, f.note, _rounded(errors.get(f.source.field)))
        for f in plan.fields
    ]


def planned_report(plan: Plan) -> tuple[ReportLine, ...]:
    """The report before packing: no errors measured yet."""
    return tuple(_report(plan, {}))


def _rounded(error: float | None) -> float | None:
    return None if error is None else float(f"{error:.5e}")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn the system's errors into typed ones."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ModelTooLarge(f"the disk ran full while packing the model in {folder}", hint=ROOM_HINT) from error
        raise ModelError(
            f"cannot write the packed model in {folder}: {error.strerror or error}",
            hint="set FINBACK_HOME to a folder that can be written",
        ) from error


def _gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB"
