"""What the client library does not exercise: raw bodies, routes, health, and clients that hang up."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from starlette.requests import ClientDisconnect

from finback.errors import ConfigError
from finback.server import is_loopback, require_guard
from finback.server.keys import KeyStore


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return found


@pytest.fixture
def url(serve: Callable[..., Any], make_tiny_model: Callable[..., Any]) -> str:
    return serve(make_tiny_model(script="ok")).url


def test_health(url: str) -> None:
    for path in ("/livez", "/readyz", "/health"):
        assert httpx2.get(url + path).status_code == 200


def test_routing_errors_have_the_same_shape(url: str) -> None:
    for response, status in [
        (httpx2.get(f"{url}/nowhere"), 404),
        (httpx2.get(f"{url}/v1/chat/completions"), 405),
        (httpx2.post(f"{url}/v1/models"), 405),
    ]:
        assert response.status_code == status
        assert response.json()["error"]["type"] == "invalid_request_error"
        assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model": "tiny"}',
        b'{"model": "tiny", "prompt": 5}',
        b'{"model": "tiny", "prompt": {}}',
        b'{"model": "tiny", "prompt": [[]]}',
        b'{"model": "tiny", "prompt": ["a", 5]}',
        b'{"model": "tiny", "prompt": []}',
        b'{"model": "tiny", "prompt": "x", "seed": 1e400}',
        b'{"model": "tiny", "prompt": "x", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "\xff\xfe"}',
        b'{"model": "tiny", "prompt": "\\ud800"}',
        b'{"model": "tiny", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "tiny", "prompt": "x", "seed": ' + b"9" * 100_000 + b"}",
        b'{"model": "tiny", "prompt": "x", "best_of": 3}',
        b'{"model": "tiny", "prompt": "x", "suffix": "y"}',
        b'{"model": "tiny", "prompt": "x", "echo": true, "logprobs": 1}',
    ],
)
def test_bad_bodies_are_the_clients_fault(url: str, body: bytes) -> None:
    response = httpx2.post(f"{url}/v1/completions", content=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]


def test_a_body_has_a_limit(url: str) -> None:
    response = httpx2.post(f"{url}/v1/completions", content=b" " * (33 << 20))
    assert response.status_code == 413
    assert "MiB" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_stops_the_work(serve: Callable[..., Any], stream: bool) -> None:
    running = serve(max_requests=4)
    body = json.dumps({"model": "tiny", "prompt": "go on", "max_tokens": 450, "n": 3, "stream": stream}).encode()
    address = urlsplit(running.url)
    connection = socket.create_connection((address.hostname, address.port))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    assert until(lambda: running.engine.num_running > 0)
    connection.close()
    assert until(lambda: running.engine.num_running == 0, 2.0)
    assert until(lambda: not running.engine.has_work)


def test_only_loopback_needs_no_key(tmp_path: Path) -> None:
    loopback, others = ("127.0.0.1", "::1", "localhost", "127.1.2.3"), ("0.0.0.0", "::", "192.168.1.5")
    assert all(is_loopback(host) for host in loopback)
    assert not any(is_loopback(host) for host in others)
    for host in loopback:
        require_guard(host, tmp_path)
    for host in others:
        with pytest.raises(ConfigError) as caught:
            require_guard(host, tmp_path)
        assert "finback keys create" in str(caught.value.hint)
    with pytest.raises(ConfigError):
        require_guard("example.org", tmp_path)
    assert list(tmp_path.iterdir()) == []
    store = KeyStore(tmp_path)
    key, _ = store.create("one")
    for host in others:
        require_guard(host, tmp_path)
    store.revoke(key)
    with pytest.raises(ConfigError):
        require_guard("0.0.0.0", tmp_path)


def test_an_answer_that_never_began_is_closed() -> None:
    """A client may be gone before the first byte of a stream: then nothing of it has run that could clean up."""
    from finback.server.app import AnswerStream

    class Answer:
        closed = False

        async def chunks(self, *, usage_chunk: bool) -> Any:
            yield {}

        def close(self) -> None:
            self.closed = True

    async def gone(message: Any) -> None:
        raise OSError

    answer = Answer()
    response = AnswerStream(answer, usage_chunk=False)  # type: ignore[arg-type]
    scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
    with pytest.raises((OSError, ClientDisconnect)):
        asyncio.run(response(scope, asyncio.Queue().get, gone))
    assert answer.closed
