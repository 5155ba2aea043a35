"""The listening side: uvicorn, with deadlines for slow clients, a bound on connections, and an orderly end.

A connection that waits for a request must have its whole head soon; when there are too many, the one that has waited
longest is closed. A client that does not read its answer is dropped, which aborts its request. At the first SIGTERM or
SIGINT the server takes no new work, says so, and ends when the running requests have ended or their time is over; the
second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from finback.config import Settings
from finback.errors import ConfigError, InvalidRequest
from finback.server.edge import Gate
from finback.server.replies import error_body, json_bytes
from finback.server.worker import EngineWorker

log = logging.getLogger("finback.server")

MAX_HEAD_BYTES = 32 << 10
MAX_CONNECTIONS = 10_000
DESCRIPTORS_ASIDE = 128  # for files, the engine and the ledger
LAST_WORDS_S = 5  # for answers that are cut short to say so


@dataclass(slots=True)
class Patience:
    """How long clients may make the server wait, and how many. ``waiting``: those without a request, oldest first."""

    head_s: float = 10.0  # for the head of a request, from its first byte or from the connection
    idle_s: int = 60  # between requests
    stall_s: float = 30.0  # for a client to read on
    max_connections: int = MAX_CONNECTIONS
    waiting: dict[Connection, None] = field(default_factory=dict)


class Connection(H11Protocol):
    """One connection. Invariant: it is in ``patience.waiting`` exactly while no request of it is being answered."""

    def __init__(self, *arguments: Any, patience: Patience, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._patience = patience
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there; its request is due."""
        super().connection_made(transport)
        if len(self.connections) > self._patience.max_connections:
            victim = next(iter(self._patience.waiting), self)
            self._patience.waiting.pop(victim, None)
            victim.transport.abort()
            if victim is self:
                return
        self._wait()
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Read on; a request that has begun must soon be there."""
        if self in self._patience.waiting and self._head_timer is None:
            self._expect_head()
        super().data_received(data)
        self._note_request()

    def on_response_complete(self) -> None:
        """A request is answered; the next one may come, or be there already."""
        self._wait()
        super().on_response_complete()
        self._note_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._patience.waiting.pop(self, None)
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read as fast as it is written to."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(self._patience.stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has caught up."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, in the shape of other errors."""
        body = json_bytes(error_body(InvalidRequest(msg)))
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        try:
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # in the middle of another answer
            self.transport.abort()
        else:
            self.transport.close()

    def _wait(self) -> None:
        self._patience.waiting[self] = None

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self._patience.head_s, self.transport.abort)

    def _note_request(self) -> None:
        """Stop waiting if a request is being answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._patience.waiting.pop(self, None)
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None


class Listener(uvicorn.Server):
    """A server that drains. ``on_ready`` is called with the base URL once requests are taken."""

    def __init__(
        self,
        config: uvicorn.Config,
        gate: Gate,
        worker: EngineWorker,
        *,
        grace_s: float,
        on_ready: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(config)
        self._gate = gate
        self._worker = worker
        self._grace_s = grace_s
        self._on_ready = on_ready
        self._deadline: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if self.started and self._on_ready is not None:
            self._on_ready(self._url())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the end, the second one is the end."""
        if self._gate.draining:
            os._exit(128 + sig)  # what runs is lost, as if the power had gone; the ledger is made for that
        super().handle_exit(sig, frame)
        self.should_exit = False  # on_tick sets it when the time has come
        self._gate.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; true ends the server."""
        if self._gate.draining and not self.should_exit:
            await self._drain()
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._grace_s
            if self._gate.active:
                log.warning("stopping: %d requests may end within %g s", self._gate.active, self._grace_s)
        if not self._gate.active:
            self.should_exit = True
        elif now >= self._deadline:
            log.warning("stopping: %d requests are cut short", self._gate.active)
            await asyncio.to_thread(self._worker.stop)
            self.should_exit = True

    def _url(self) -> str:
        host, scheme = self.config.host, "https" if self.config.ssl else "http"
        port = self.servers[0].sockets[0].getsockname()[1]
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def listen(app: ASGIApp, settings: Settings, patience: Patience | None = None) -> uvicorn.Config:
    """How to serve ``app``; ConfigError if the address or the certificate cannot be used."""
    patience = patience or Patience(max_connections=_most_connections())
    if settings.tls_cert and settings.tls_key:
        _check_certificate(settings.tls_cert, settings.tls_key)
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=partial(Connection, patience=patience),  # type: ignore[arg-type]  # called like the class
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_keep_alive=patience.idle_s,
        timeout_graceful_shutdown=LAST_WORDS_S,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )


def require_free(host: str, port: int) -> None:
    """Raise ConfigError now rather than a log line later when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror}", hint="choose another --port"
            ) from None


def _most_connections() -> int:
    """As many as there are descriptors for; the process takes all that it is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + DESCRIPTORS_ASIDE
    limit = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft == resource.RLIM_INFINITY or soft >= limit:
        return MAX_CONNECTIONS
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(limit - DESCRIPTORS_ASIDE, 16)


def _check_certificate(cert: Path, key: Path) -> None:
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key)
    except OSError as error:  # also what ssl raises
        raise ConfigError(f"cannot use the certificate {cert} with the key {key}: {error}") from None
