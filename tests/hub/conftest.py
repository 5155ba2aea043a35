"""A hub on the loopback interface that behaves as badly as it is told to.

:class:`FakeHub` speaks the three calls that a pull makes (revision, listing, file) for one repository. Faults are
queued per path and used up one per request, so a test says exactly what goes wrong and when.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from finback.config import Settings
from finback.hub.http import Patience
from finback.hub.progress import Progress

REPO = "someone/Some-Model"
COMMIT = "c0ffee" * 6 + "beef"
IMPATIENT = Patience(attempts=4, first_pause_s=0.001, longest_pause_s=0.002, connect_s=2, read_s=1, stall_window_s=0.3)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer."""

    status: int | None = None  # answer with this status instead
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None  # close the connection after so many bytes of the body
    corrupt_at: int | None = None  # flip a bit of this byte of the file
    announce: int | None = None  # Content-Length (200) or the range's total (206) is off by this much
    surplus: int = 0  # send so many bytes more than the file has
    no_length: bool = False  # announce nothing: the body ends with the connection
    ignore_range: bool = False  # answer 200 whatever was asked
    range_from: int | None = None  # claim that the part starts here
    chunk_bytes: int = 1 << 16
    pause_s: float = 0.0  # between chunks


class Recorder(Progress):
    """Keeps what a pull says about itself."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.total_bytes = self.counted_bytes = 0

    def begin(self, label: str, total_bytes: int) -> None:
        self.total_bytes = total_bytes

    def found(self, count_bytes: int) -> None:
        self.counted_bytes += count_bytes

    def advance(self, count_bytes: int) -> None:
        self.counted_bytes += count_bytes

    def note(self, text: str) -> None:
        self.notes.append(text)


class FakeHub:
    """One repository; ``files`` may change between requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.listed: dict[str, dict[str, Any]] = {}  # overrides of listing entries, by path
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.etags: dict[str, str] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.page_size = 1000
        self.token: str | None = None
        self._server = _QuietServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environ(self) -> dict[str, str]:
        return {"HF_ENDPOINT": self.url}

    def fail(self, path: str, *faults: Fault) -> None:
        """Queue faults for the next requests of a file (or of ``revision``, ``tree``)."""
        self.faults[path].extend(faults)

    def next_fault(self, path: str) -> Fault:
        queue = self.faults[path]
        return queue.popleft() if queue else Fault()

    def asked_for(self, path: str) -> list[dict[str, str]]:
        """The headers of every request for ``path``."""
        return [headers for asked, headers in self.requests if asked.endswith("/" + path)]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def listing_entry(path: str, content: bytes) -> dict[str, Any]:
    """As the hub lists it: big files by SHA-256, small ones by git blob id."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if len(content) >= 1000:
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what these tests are about."""


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            path = unquote(address.path)
            hub.requests.append((path, {name.lower(): value for name, value in self.headers.items()}))
            if hub.token and self.headers.get("authorization") != f"Bearer {hub.token}":
                return self._plain(401, b"{}")
            if path.startswith(f"/api/models/{REPO}/revision/"):
                return self._json("revision", {"sha": COMMIT})
            if path == f"/api/models/{REPO}/tree/{COMMIT}":
                return self._listing(int(parse_qs(address.query).get("cursor", ["0"])[0]))
            prefix = f"/{REPO}/resolve/{COMMIT}/"
            name = path.removeprefix(prefix)
            if path.startswith(prefix) and name in hub.files:
                return self._file(name, hub.files[name])
            return self._plain(404, b"{}")

        def _listing(self, cursor: int) -> None:
            entries = [listing_entry(path, content) | hub.listed.get(path, {}) for path, content in hub.files.items()]
            more = {}
            if cursor + hub.page_size < len(entries):
                link = f"{hub.url}/api/models/{REPO}/tree/{COMMIT}?recursive=true&cursor={cursor + hub.page_size}"
                more = {"Link": f'<{link}>; rel="next"'}
            self._json("tree", entries[cursor : cursor + hub.page_size], more)

        def _json(self, what: str, value: Any, headers: dict[str, str] | None = None) -> None:
            fault = hub.next_fault(what)
            self._plain(fault.status or 200, json.dumps(value).encode(), (headers or {}) | fault.headers)

        def _plain(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def _file(self, name: str, content: bytes) -> None:
            fault = hub.next_fault(name)
            if fault.status:
                return self._plain(fault.status, b"no", fault.headers)
            etag = hub.etags.get(name, f'"{hashlib.sha256(content).hexdigest()[:16]}"')
            start = self._start(etag, fault)
            if start > len(content):
                return self._plain(416, b"")
            self._body(_spoiled(content, fault), start, etag, fault)

        def _start(self, etag: str, fault: Fault) -> int:
            asked, unless = self.headers.get("range"), self.headers.get("if-range", etag)
            if not asked or fault.ignore_range or unless != etag:
                return 0
            return int(asked.removeprefix("bytes=").removesuffix("-"))

        def _body(self, content: bytes, start: int, etag: str, fault: Fault) -> None:
            off = fault.announce or 0
            length = len(content) - start + (0 if start else off)
            self.send_response(206 if start else 200)
            self.send_header("ETag", etag)
            if fault.no_length:
                self.close_connection = True
            else:
                self.send_header("Content-Length", str(length))
            if start:
                begin = start if fault.range_from is None else fault.range_from
                self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content) + off}")
            self.end_headers()
            self._stream(content[start:], fault)

        def _stream(self, body: bytes, fault: Fault) -> None:
            self.close_connection |= fault.cut_after is not None
            end = len(body) if fault.cut_after is None else min(fault.cut_after, len(body))
            try:
                for at in range(0, end, fault.chunk_bytes):
                    self.wfile.write(body[at : min(at + fault.chunk_bytes, end)])
                    time.sleep(fault.pause_s)
            except OSError:
                self.close_connection = True

    return Handler


def _spoiled(content: bytes, fault: Fault) -> bytes:
    if fault.corrupt_at is not None:
        at = fault.corrupt_at
        content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    return content + b"x" * fault.surplus


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loopback interface is reached directly, whatever this machine is set up with."""
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    server = FakeHub()
    yield server
    server.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()
