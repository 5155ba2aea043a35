"""The outermost layer: what holds for every request, whatever it asks.

Each gets an id and headers that keep browsers from doing anything clever with a reply, is refused when its framing is
ambiguous, and is counted while it runs, so that a server that is told to stop knows when it is idle.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finback.errors import InvalidRequest
from finback.server.replies import error_response

MAX_HEADERS = 200
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"host"})
_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
]

# Told at the end of each request: its scope, its status, and the seconds that it took.
OnEnd = Callable[[Scope, int, float], None]


@dataclass(slots=True)
class Gate:
    """Whether the server takes new work. Invariant: ``active`` requests are between their heads and their ends."""

    draining: bool = False
    active: int = 0


class Edge:
    """See the module. ``scope["request_id"]`` is the id, which is also that of the request's row in the ledger."""

    def __init__(self, app: ASGIApp, *, gate: Gate, on_end: OnEnd) -> None:
        self._app = app
        self._gate = gate
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; anything else too."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["request_id"] = uuid.uuid4().hex
        head = [(b"x-request-id", scope["request_id"].encode())]
        status, started = 0, time.monotonic()

        async def send_with_head(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name for name, _ in message["headers"]}
                added = [(name, value) for name, value in _HEADERS if name not in given]
                message = {**message, "headers": [*message["headers"], *head, *added]}
            await send(message)

        self._gate.active += 1
        try:
            complaint = _complaint(scope)
            app = self._app if complaint is None else _refusal(complaint)
            await app(scope, receive, send_with_head)
        except Exception:
            status = 500  # as whoever is further out will say
            raise
        finally:
            self._gate.active -= 1
            self._on_end(scope, status, time.monotonic() - started)


def _refusal(complaint: str) -> ASGIApp:
    """A 400 that ends the connection: nobody can say where its next request begins."""
    response = error_response(InvalidRequest(complaint))
    response.headers["connection"] = "close"
    return response


def _complaint(scope: Scope) -> str | None:
    """What is wrong with a request's head.

    Where a proxy may see another end of the body than this server does, a second request could be smuggled past it.
    """
    names = [name for name, _ in scope["headers"]]
    framing = [name for name in names if name in _FRAMING]
    if len(names) > MAX_HEADERS:
        return f"a request has at most {MAX_HEADERS} headers"
    if len(framing) != len(set(framing)) or {b"content-length", b"transfer-encoding"} <= set(framing):
        return "a request has one Host and one length: either Content-Length or Transfer-Encoding"
    return None
