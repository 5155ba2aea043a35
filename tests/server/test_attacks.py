"""Hostile clients on raw sockets: slow, silent, oversized, ambiguous, greedy, and gone in the middle."""

from __future__ import annotations

import gzip
import json
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from tests.conftest import TinyModel
from tests.server.test_http import until
from tests.server.test_ledger import all_closed, rows

from finback.server.keys import KeyStore, Limits
from finback.server.listener import Connection, Patience

PATIENCE = {"head_s": 0.4, "idle_s": 1, "stall_s": 0.5}
Serve = Callable[..., Any]


def connect(running: Any, receive_bytes: int | None = None) -> socket.socket:
    address = urlsplit(running.url)
    connection = socket.socket()
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(10)
    connection.connect((address.hostname, address.port))
    return connection


def post(body: bytes, *headers: str, path: str = "/v1/completions") -> bytes:
    """A request as bytes; a length is given unless ``headers`` say something of their own."""
    framing = (
        headers
        if any(h.lower().startswith(("content-l", "transfer")) for h in headers)
        else (
            *headers,
            f"Content-Length: {len(body)}",
        )
    )
    return "\r\n".join((f"POST {path} HTTP/1.1", "Host: x", *framing, "", "")).encode() + body


def completion(**fields: Any) -> bytes:
    return json.dumps({"model": "tiny", "prompt": "go on", "max_tokens": 3} | fields).encode()


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def is_well(running: Any) -> bool:
    return httpx2.post(f"{running.url}/v1/completions", content=completion(), timeout=5).status_code == 200


def at_rest(running: Any) -> bool:
    """Whether all is over soon: a reply to this call comes after whatever was sent before it has been taken in."""
    httpx2.get(f"{running.url}/livez", timeout=10)
    state, engine, gate = running.server.server_state, running.engine, running.gate
    if not until(lambda: not (state.connections or engine.has_work or gate.active) and all_closed(running.home)):
        return False
    running.engine.check_integrity()
    return True


@pytest.mark.parametrize("begun", [b"", b"GET /livez HT", b"GET /livez HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_drips_is_cut_off(serve: Serve, begun: bytes) -> None:
    running = serve(patience=Patience(**PATIENCE))
    began = time.monotonic()
    with connect(running) as connection:
        connection.sendall(begun)
        connection.settimeout(0.1)
        while time.monotonic() - began < 5:
            try:
                if begun:
                    connection.sendall(b"a")
                if connection.recv(100) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    assert time.monotonic() - began < 3
    assert is_well(running)


def test_a_second_request_that_drips_is_cut_off_too(serve: Serve) -> None:
    running = serve(patience=Patience(**PATIENCE))
    with connect(running) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.sendall(b"GET /li")
        began = time.monotonic()
        assert read_all(connection).count(b"200 OK") == 1
        assert time.monotonic() - began < 3


def test_a_body_that_drips_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finback.server.app.BODY_GRACE_S", 0.3)
    running = serve()
    with connect(running) as connection:
        connection.sendall(post(b"{", "Content-Length: 1000"))
        assert b" 408 " in read_all(connection)
    assert at_rest(running)


def test_a_body_that_nobody_reads_is_cut_off(serve: Serve) -> None:
    """An answer has been given; the rest of the body may drip for a moment and no longer."""
    running = serve(patience=Patience(**PATIENCE))
    with connect(running) as connection:
        connection.sendall(post(b"{", "Content-Length: 1000", path="/nowhere"))
        assert b" 404 " in connection.recv(4096)
        began = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - began < 5:
                connection.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - began < 4


def test_idle_connections_make_room(serve: Serve) -> None:
    running = serve(patience=Patience(max_connections=20))
    idle = [connect(running) for _ in range(60)]
    try:
        assert is_well(running)
        assert until(lambda: sum(connection.fileno() >= 0 and closed(connection) for connection in idle) >= 40)
        assert is_well(running)
    finally:
        for connection in idle:
            connection.close()


def closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


HEADS = {
    "a header of a megabyte": b"GET /livez HTTP/1.1\r\nHost: x\r\nA: " + b"a" * (1 << 20) + b"\r\n\r\n",
    "ten thousand headers": b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"A: a\r\n" * 10_000 + b"\r\n",
    "a line of a megabyte": b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "two lengths": post(completion(), "Content-Length: 5", "Content-Length: 6"),
    "a length and chunks": post(b"0\r\n\r\n", "Content-Length: 5", "Transfer-Encoding: chunked"),
    "chunks of chunks": post(b"0\r\n\r\n", "Transfer-Encoding: chunked, chunked"),
    "an unknown coding": post(b"0\r\n\r\n", "Transfer-Encoding: gzip"),
    "a space before the colon": post(b"0\r\n\r\n", "Transfer-Encoding : chunked"),
    "a negative length": post(b"", "Content-Length: -1"),
    "a length in hex": post(b"12345", "Content-Length: 0x5"),
    "a bad chunk": post(b"zz\r\n{}\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
    "a chunk that lies": post(b"2\r\n{}}}\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
    "a huge chunk size": post(b"f" * 40 + b"\r\n{}", "Transfer-Encoding: chunked"),
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "no request": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
    "a bare line feed": b"GET /livez HTTP/1.1\r\nHost: x\r\nA: b\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", HEADS)
def test_ambiguous_and_oversized_requests_are_refused(serve: Serve, name: str) -> None:
    running = serve(patience=Patience(**PATIENCE))
    with connect(running) as connection:
        with suppress(OSError):
            connection.sendall(HEADS[name])
        answer = read_all(connection)
    if name == "a bare line feed":  # two headers, as others see them: no smuggling either
        assert answer.count(b"HTTP/1.1 ") <= 1
    elif answer:  # the rest of a megabyte may cross the refusal, which the kernel then throws away
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 ")), answer[:200]
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b'"error"' in answer
    assert rows(running.home) == {}
    assert is_well(running)


def test_bodies_that_are_too_large_or_packed_are_refused_unread(serve: Serve) -> None:
    running = serve()
    for headers, status in (
        (("Content-Length: 99999999999",), b" 413 "),
        (("Content-Encoding: gzip", "Content-Length: 50"), b" 415 "),
        (("Expect: 100-continue", "Content-Length: 99999999999"), b" 413 "),
    ):
        with connect(running) as connection:
            connection.sendall(post(b"", *headers))
            answer = connection.recv(4096)
            assert status in answer.split(b"\r\n")[0]
            assert b"100 Continue" not in answer
    chunks = (b" " * (1 << 20) for _ in range(33))  # no length is told: it is counted as it comes
    assert httpx2.post(f"{running.url}/v1/completions", content=chunks).status_code == 413
    bomb = gzip.compress(bytes(1 << 20))
    packed = httpx2.post(f"{running.url}/v1/completions", content=bomb, headers={"content-encoding": "gzip"})
    assert packed.status_code == 415


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"tiny","prompt":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b'{"model":"tiny","prompt":"x","temperature":' + b"1" * 10_000_000 + b"}",
        b'{"model":"tiny","prompt":"x","temperature":1' + b"0" * 400 + b"}",
        b'{"model":"tiny","prompt":"x","max_tokens":1e308}',
        b'{"model":"tiny","prompt":"x","temperature":Infinity}',
        b'{"model":"tiny","prompt":"x","temperature":-NaN}',
        b'{"model":"tiny","prompt":"\\udfff"}',
        b'{"model":"tiny","prompt":"\xed\xa0\x80"}',
        b'{"model":"tiny","prompt":"x"} {"again":1}',
        b"\xff\xfe{\x00}\x00",
        b'{"model":"tiny","messages":[{"role":"user","content":' + b"[" * 100_000 + b"]" * 100_000 + b"}]}",
    ],
    ids=range(11),
)
def test_json_bombs(serve: Serve, body: bytes) -> None:
    running = serve()
    for path in ("/v1/completions", "/v1/chat/completions"):
        response = httpx2.post(running.url + path, content=body)
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"
    assert is_well(running)


def test_of_a_field_that_comes_twice_the_last_counts(serve: Serve) -> None:
    running = serve()
    body = b'{"model":"x","prompt":"go on","max_tokens":9,"model":"tiny","max_tokens":2}'
    response = httpx2.post(f"{running.url}/v1/completions", content=body)
    assert response.json()["usage"]["completion_tokens"] == 2


NUMBERS = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "n", "seed")
VALUES = (-1, 0, 1, 2**31, 2**63, 2**64, -(2**63), 1e308, -1e308, 0.5, "1", "", True, [], {}, [1], None)


def test_every_number_with_every_value(serve: Serve) -> None:
    """Honoured or refused: 200 or 400, whatever is in the field, and never the server's fault."""
    running = serve()
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    plain = {"model": "tiny", "prompt": "x", "max_tokens": 2}
    fields = (*NUMBERS, "repetition_penalty", "logprobs", "top_logprobs", "best_of", "stop", "logit_bias", "stream")
    fields += ("max_completion_tokens", "stream_options", "messages", "prompt", "tools", "metadata", "user", "echo")
    with httpx2.Client(base_url=running.url) as client:
        for path, body in (("/v1/chat/completions", chat), ("/v1/completions", plain)):
            for field in fields:
                for value in VALUES:
                    response = client.post(path, json=body | {field: value})
                    assert response.status_code in (200, 400), (path, field, value, response.text)
        for prompt in ([-1], [258], [2**31], [2**63], [1.5], [[1], [999]], [True], [None], [[[1]]], ["x"] * 17):
            assert client.post("/v1/completions", json=plain | {"prompt": prompt}).status_code == 400, prompt
        for token in ("-1", "258", "2147483648", "9" * 10, "9" * 30, "1.5", "1e1", " 1", "\u0661"):
            biased = client.post("/v1/completions", json=plain | {"logit_bias": {token: 1}})
            assert biased.status_code == 400, token
    assert at_rest(running)


def test_one_request_cannot_become_too_many(serve: Serve) -> None:
    running = serve()
    for fields in ({"n": 16, "prompt": ["x"] * 5}, {"n": 17}, {"best_of": 10**6}, {"n": 1, "prompt": ["x"] * 1000}):
        response = httpx2.post(f"{running.url}/v1/completions", content=completion(**fields))
        assert response.status_code == 400
    biases = {str(token): 1 for token in range(5000)}
    assert httpx2.post(f"{running.url}/v1/completions", content=completion(logit_bias=biases)).status_code == 400


def test_hanging_up_at_every_stage(serve: Serve) -> None:
    running = serve(max_requests=4)
    store = KeyStore(running.home)
    key, text = store.create("one", Limits(concurrency=1000))
    bearer = f"Authorization: Bearer {text}"
    rng = random.Random(1)

    def ask(**fields: Any) -> bytes:
        return post(completion(**fields), bearer)

    stages: dict[str, Callable[[socket.socket], None]] = {
        "connected": lambda c: None,
        "in the head": lambda c: c.sendall(ask()[:20]),
        "in the body": lambda c: c.sendall(ask()[:-5]),
        "asked": lambda c: c.sendall(ask(max_tokens=300)),
        "asked for a stream": lambda c: c.sendall(ask(max_tokens=300, stream=True)),
        "in the stream": lambda c: (c.sendall(ask(max_tokens=300, stream=True, n=2)), c.recv(300))[0],
        "at the end": lambda c: (c.sendall(ask(max_tokens=1)), c.recv(30))[0],
        "asked twice": lambda c: c.sendall(ask(max_tokens=300) * 2),
    }
    for _ in range(60):
        connection = connect(running)
        stages[rng.choice(list(stages))](connection)
        if rng.random() < 0.5:  # a reset rather than an end
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
    assert at_rest(running)
    assert all(row["status"] in (200, 499) for row in rows(running.home).values())
    store.limit(key, Limits(concurrency=1))  # every seat is free again
    headers = {"authorization": f"Bearer {text}"}
    assert httpx2.post(f"{running.url}/v1/completions", content=completion(), headers=headers).status_code == 200


def test_a_client_that_does_not_read_is_dropped(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for it in the server is bounded, and the work stops."""
    held: list[int] = []
    made, pause = Connection.connection_made, Connection.pause_writing

    def with_little_room(connection: Connection, transport: Any) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        made(connection, transport)

    def noted(connection: Connection) -> None:
        held.append(connection.transport.get_write_buffer_size())
        pause(connection)

    monkeypatch.setattr(Connection, "connection_made", with_little_room)
    monkeypatch.setattr(Connection, "pause_writing", noted)
    running = serve(SlowSteps(), patience=Patience(**PATIENCE), max_requests=8)
    body = completion(max_tokens=400, n=8, stream=True, logprobs=20, temperature=1)
    with connect(running, receive_bytes=4096) as connection:
        connection.sendall(post(body))
        assert until(lambda: bool(rows(running.home)) and all_closed(running.home), 20)
    [row] = rows(running.home).values()
    assert (row["status"], row["finish_reason"].split(",")[0]) == (499, "abort")
    assert held
    assert max(held) <= 256 << 10
    assert at_rest(running)


class SlowSteps(TinyModel):
    """Takes long enough for a client's time to be up before the answer's end."""

    def forward(self, batch: Any, cache: Any) -> Any:
        time.sleep(0.01)
        return super().forward(batch, cache)


def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    running = serve()
    with connect(running) as connection:
        asked = [post(completion(max_tokens=count)) for count in (1, 2, 3)]
        asked.append(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        connection.sendall(b"".join(asked))
        answer = read_all(connection)
    tokens = [part.split(b",")[0] for part in answer.split(b'"completion_tokens":')[1:]]
    assert tokens == [b"1", b"2", b"3"]
    assert answer.count(b"HTTP/1.1 200") == 4


def test_names_are_not_statements_or_paths(serve: Serve) -> None:
    running = serve()
    _, text = KeyStore(running.home).create("one")
    headers = {"authorization": f"Bearer {text}"}
    for name in ("' OR 1=1 --", "tiny'; DROP TABLE requests; --", "../../etc/passwd", "tiny\0", "%2e%2e%2f", "\ud7ff"):
        response = httpx2.post(f"{running.url}/v1/completions", content=completion(model=name), headers=headers)
        assert response.status_code == 404
        assert httpx2.get(f"{running.url}/v1/usage", params={"key": name}, headers=headers).status_code == 403
    body = completion(user="'; DROP TABLE requests; --")
    assert httpx2.post(f"{running.url}/v1/completions", content=body, headers=headers).status_code == 200
    assert len(rows(running.home)) == 1


def test_a_wrong_key_is_refused_at_once_and_not_repeated(serve: Serve) -> None:
    running = serve()
    KeyStore(running.home).create("one")
    for wrong in ("x" * 20_000, "fb-00000000-" + "0" * 64, "\u00e4", "' OR ''='"):
        with connect(running) as connection:  # the body is never sent: the answer does not wait for it
            head = post(b"", f"Authorization: Bearer {wrong}", "Content-Length: 1000")
            connection.sendall(head.decode().encode("latin-1"))
            answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 401 "), answer[:100]
        assert wrong.encode() not in answer
    assert rows(running.home) == {}


def test_replies_tell_browsers_to_do_nothing_clever(serve: Serve) -> None:
    running = serve()
    for response in (httpx2.get(f"{running.url}/livez"), httpx2.get(f"{running.url}/<script>")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
        assert response.headers["content-type"].startswith("application/json")
        assert "server" not in response.headers
        assert "access-control-allow-origin" not in response.headers
