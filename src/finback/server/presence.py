"""How commands on this machine find running servers: a file for each, below the home folder, for its owner's eyes.

It holds the address and a key that lives as long as the server, so that ``finback ps`` needs neither. The server
holds a lock on it; a file without one is of a server that is gone.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def announced(home: Path, record: dict[str, Any]) -> Iterator[None]:
    """Keep ``record`` where :func:`present` finds it."""
    path = _folder(home) / f"{os.getpid()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, json.dumps(record).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def present(home: Path) -> list[dict[str, Any]]:
    """The records of the servers that run. Those of servers that are gone are cleared away."""
    found = []
    for path in sorted(_folder(home).glob("*.json")):
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append({"pid": int(path.stem), **json.load(file)})
            else:
                path.unlink()
    return found


def _folder(home: Path) -> Path:
    return home / "servers"
