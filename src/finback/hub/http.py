"""HTTP for the hub: redirects, retries and resumed transfers over a server that may cut, stall, lie or change
its mind.

The token goes to the endpoint it was issued for and nowhere else; a redirect may not leave TLS. Every answer
is checked against what was asked before a byte of it is kept: the expected size is known beforehand from the
source's listing.
"""

from __future__ import annotations

import os
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import urljoin, urlsplit

from finback import __version__
from finback.errors import ChecksumMismatch, ConfigError, DownloadError, UnknownModel
from finback.hub.partial import Digest, PartialFile
from finback.hub.progress import SILENT, Progress

if TYPE_CHECKING:
    import httpx2

DEFAULT_ENDPOINT = "https://huggingface.co"
_MAX_REDIRECTS = 8
_MAX_JSON_BYTES = 64 << 20
_RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file as the source lists it."""

    path: str
    url: str
    size_bytes: int
    digest: Digest | None


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to bear with a bad connection. Attempts are counted anew whenever bytes have arrived."""

    attempts: int = 6
    first_pause_s: float = 1.0
    longest_pause_s: float = 30.0
    longest_asked_pause_s: float = 120.0
    connect_s: float = 20.0
    read_s: float = 60.0
    stall_window_s: float = 60.0
    stall_bytes: int = 64 << 10

    def pause_s(self, attempt: int, asked_s: float | None) -> float:
        """Doubling pauses; what the server asks for comes first, within reason."""
        if asked_s is not None:
            return min(asked_s, self.longest_asked_pause_s)
        return min(self.first_pause_s * 2.0 ** (attempt - 1), self.longest_pause_s)


class _Again(Exception):
    """This attempt failed for a reason that may pass."""

    def __init__(self, why: str, after_s: float | None = None) -> None:
        super().__init__(why)
        self.after_s = after_s


def endpoint_from(environ: Mapping[str, str]) -> str:
    """The hub's base address: HF_ENDPOINT, or the public one."""
    text = environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    try:
        scheme, hostname, _ = _origin(text)
    except ValueError:
        scheme, hostname = "", None
    if scheme not in ("http", "https") or not hostname:
        raise ConfigError(f"HF_ENDPOINT must be an http or https address, not {text!r}")
    return text.rstrip("/")


def token_from(environ: Mapping[str, str], endpoint: str) -> str | None:
    """HF_TOKEN, if there is one and the way to the endpoint is private."""
    token = environ.get("HF_TOKEN", "").strip()
    if not token:
        return None
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ConfigError(
            "HF_TOKEN has characters that no token has", hint="set it again, without quotes or line breaks"
        )
    address = urlsplit(endpoint)
    if address.scheme != "https" and address.hostname not in _LOOPBACK:
        raise ConfigError(
            f"HF_TOKEN would be sent unencrypted to {endpoint}",
            hint="use an https endpoint, or unset HF_TOKEN",
        )
    return token


class Http:
    """One client for one pull."""

    def __init__(
        self,
        endpoint: str,
        token: str | None = None,
        *,
        patience: Patience | None = None,
        progress: Progress = SILENT,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        import httpx2

        self._httpx = httpx2
        self.endpoint = endpoint
        self._token = token
        self._patience = patience or Patience()
        self._progress = progress
        self._sleep = sleep
        self._clients: dict[str, httpx2.Client] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients.values():
            client.close()

    def get(self, url: str, what: str) -> tuple[bytes, Mapping[str, str]]:
        """A small answer as a whole (body, headers), with retries."""
        attempts = max(2, self._patience.attempts // 2)
        for attempt in range(1, attempts + 1):
            try:
                return self._get_once(url, what)
            except _Again as why:
                self._pause(attempt, attempts, why, what)
        raise AssertionError("unreachable: the last pause raises")

    def download(self, file: RemoteFile, target: Path) -> str:
        """Bring ``file`` to ``target``, resuming what is there; its SHA-256. ``target`` appears only when it
        is right.
        """
        with PartialFile(target, file.size_bytes, file.digest) as part:
            self._progress.found(part.received)
            self._fill(file, part)
            try:
                return part.commit()
            except ChecksumMismatch:
                self._progress.advance(-file.size_bytes)
                self._progress.note(f"{file.path}: the bytes are not the published ones; fetching it again")
            self._fill(file, part)
            return part.commit()

    def _fill(self, file: RemoteFile, part: PartialFile) -> None:
        attempt = 0
        while part.missing_bytes:
            before = part.received
            try:
                self._transfer(file, part)
            except _Again as why:
                attempt = 1 if part.received > before else attempt + 1
                self._pause(attempt, self._patience.attempts, why, file.path)

    def _transfer(self, file: RemoteFile, part: PartialFile) -> None:
        """One request: continue where the part ends if the source still has the same file, else from the
        start.
        """
        with self._open(file.url, _range_headers(part), file.path) as answer:
            if answer.status_code == 416:
                self._throw_away(part, None)
                raise _Again("the server cannot continue where the transfer stopped")
            self._align(answer, part)
            self._receive(answer, part)
        if part.missing_bytes:
            raise _Again(f"the connection ended after {part.received:,} of {part.size_bytes:,} bytes")

    def _align(self, answer: httpx2.Response, part: PartialFile) -> None:
        """Make the part end where the answer begins; refuse an answer that announces another file."""
        start, total = _announced(answer)
        if total is not None and total != part.size_bytes:
            raise _Again(f"the server announces {total:,} bytes where {part.size_bytes:,} were listed")
        if start == part.received and start > 0:
            return
        if start != 0:
            self._throw_away(part, None)
            raise _Again("the server continued at another place than asked")
        self._throw_away(part, _strong_etag(answer))

    def _receive(self, answer: httpx2.Response, part: PartialFile) -> None:
        watch = _StallWatch(self._patience)
        for chunk in answer.iter_raw():
            if len(chunk) > part.missing_bytes:
                self._throw_away(part, None)
                raise _Again("the server sent more bytes than it listed")
            part.write(chunk)
            self._progress.advance(len(chunk))
            watch.saw(len(chunk))

    def _throw_away(self, part: PartialFile, etag: str | None) -> None:
        self._progress.advance(-part.received)
        part.restart(etag)

    def _get_once(self, url: str, what: str) -> tuple[bytes, Mapping[str, str]]:
        with self._open(url, {}, what) as answer:
            body = bytearray()
            for chunk in answer.iter_raw():
                body += chunk
                if len(body) > _MAX_JSON_BYTES:
                    raise DownloadError(f"{what}: the answer is longer than {_MAX_JSON_BYTES >> 20} MiB")
            return bytes(body), answer.headers

    @contextmanager
    def _open(self, url: str, headers: Mapping[str, str], what: str) -> Iterator[httpx2.Response]:
        """The answer at the end of the redirects, its status checked; transport faults become
        :class:`_Again`.
        """
        try:
            answer = self._follow(url, headers, what)
            try:
                self._check_status(answer, what)
                yield answer
            finally:
                answer.close()
        except self._httpx.TransportError as fault:
            raise _Again(_describe(fault, url)) from fault
        except (self._httpx.InvalidURL, UnicodeError) as fault:
            raise DownloadError(f"{what}: {fault}") from fault

    def _follow(self, url: str, headers: Mapping[str, str], what: str) -> httpx2.Response:
        for _ in range(_MAX_REDIRECTS):
            client = self._client(urlsplit(url).scheme)
            request = client.build_request("GET", url, headers={**headers, **self._authorization(url)})
            answer = client.send(request, stream=True)
            if answer.status_code not in (301, 302, 303, 307, 308):
                return answer
            answer.close()
            url = _redirected(url, answer.headers.get("location"), what)
        raise DownloadError(f"{what}: more than {_MAX_REDIRECTS} redirects")

    def _client(self, scheme: str) -> httpx2.Client:
        """One client per scheme: trusted roots take a while to load, and plain HTTP has no use for them."""
        if scheme not in self._clients:
            timeout = self._httpx.Timeout(self._patience.read_s, connect=self._patience.connect_s)
            # Bytes are counted and hashed as stored, so no transfer coding may come between.
            headers = {"User-Agent": f"finback/{__version__}", "Accept-Encoding": "identity"}
            verify = True if scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._clients[scheme] = self._httpx.Client(timeout=timeout, headers=headers, verify=verify)
        return self._clients[scheme]

    def _authorization(self, url: str) -> dict[str, str]:
        if self._token and _origin(url) == _origin(self.endpoint):
            return {"Authorization": f"Bearer {self._token}"}
        return {}

    def _check_status(self, answer: httpx2.Response, what: str) -> None:
        status = answer.status_code
        if status in (200, 206, 416):
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise DownloadError(f"{what}: the server insists on compressing the answer")
            return
        if status in _RETRY_STATUS:
            raise _Again(f"the server answered {status}", _retry_after(answer))
        host = urlsplit(str(answer.url)).hostname
        if status == 404:
            raise UnknownModel(f"{what}: not found at {host}")
        if status in (401, 403):
            raise UnknownModel(
                f"{what}: {host} does not know it, or does not show it to you ({status})",
                hint=self._access_hint(),
            )
        raise DownloadError(f"{what}: {host} answered {status}")

    def _access_hint(self) -> str:
        if self._token:
            return "check the name; for a gated model, accept its licence with the account of HF_TOKEN"
        return "check the name; for a private or gated model, set HF_TOKEN to a token that may read it"

    def _pause(self, attempt: int, attempts: int, why: _Again, what: str) -> None:
        if attempt >= attempts:
            raise DownloadError(
                f"{what}: {why}; gave up after {attempts} attempts in a row",
                hint="run the same command again: it goes on where it stopped",
            ) from why
        pause = self._patience.pause_s(attempt, why.after_s)
        self._progress.note(f"{what}: {why}; trying again in {pause:.0f} s ({attempt} of {attempts - 1})")
        self._sleep(pause)


class _StallWatch:
    """Ends a transfer that crawls: a connection that gives almost nothing for a whole window is as good as
    cut.
    """

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._since = time.monotonic()
        self._bytes = 0

    def saw(self, count: int) -> None:
        self._bytes += count
        passed = time.monotonic() - self._since
        if passed < self._patience.stall_window_s:
            return
        if self._bytes < self._patience.stall_bytes:
            raise _Again(f"only {self._bytes:,} bytes came in {passed:.0f} s")
        self._since, self._bytes = time.monotonic(), 0


def _range_headers(part: PartialFile) -> dict[str, str]:
    """Ask for the rest only if it is certain to belong to what is there: same ETag, or a known digest to
    check against.
    """
    if part.received == 0 or not (part.etag or part.digest):
        return {}
    headers = {"Range": f"bytes={part.received}-"}
    if part.etag:
        headers["If-Range"] = part.etag
    return headers


def _announced(answer: httpx2.Response) -> tuple[int, int | None]:
    """(first byte, size of the whole file if the server says it)."""
    if answer.status_code == 206:
        matched = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
        if not matched:
            raise _Again("the server sent a part without saying which")
        return int(matched[1]), None if matched[3] == "*" else int(matched[3])
    length = answer.headers.get("content-length", "")
    return 0, int(length) if length.isdecimal() else None


def _strong_etag(answer: httpx2.Response) -> str | None:
    """If-Range accepts strong validators only."""
    etag = answer.headers.get("etag")
    return etag if etag and etag.startswith('"') and len(etag) < 300 else None


def _retry_after(answer: httpx2.Response) -> float | None:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isdecimal() and len(text) < 6 else None


def _redirected(url: str, location: str | None, what: str) -> str:
    if not location:
        raise DownloadError(f"{what}: a redirect without a destination")
    target = urljoin(url, location)
    scheme = urlsplit(target).scheme
    if scheme not in ("http", "https") or (scheme == "http" and urlsplit(url).scheme == "https"):
        raise DownloadError(f"{what}: refusing a redirect that leaves encrypted HTTP ({target[:200]})")
    return target


def _origin(url: str) -> tuple[str, str | None, int | None]:
    address = urlsplit(url)
    return address.scheme, address.hostname, address.port or {"http": 80, "https": 443}.get(address.scheme)


def _describe(fault: Exception, url: str) -> str:
    host = urlsplit(url).hostname
    kind = type(fault).__name__
    if "Timeout" in kind:
        return f"{host} did not answer in time"
    if kind in ("ConnectError", "ProxyError"):
        return f"cannot reach {host} ({fault})" if str(fault) else f"cannot reach {host}"
    return "the connection broke"


def from_environment(
    environ: Mapping[str, str] | None = None, *, patience: Patience | None = None, progress: Progress = SILENT
) -> Http:
    """An :class:`Http` as HF_ENDPOINT and HF_TOKEN want it."""
    environ = os.environ if environ is None else environ
    endpoint = endpoint_from(environ)
    return Http(endpoint, token_from(environ, endpoint), patience=patience, progress=progress)
