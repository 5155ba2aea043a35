"""Every route of the table by every state of a key, from the table itself; and what an open server refuses."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pytest

from finback.errors import LimitReached
from finback.server.access import REFUSED_PER_MINUTE, Policy, Refusals, _address
from finback.server.keys import Key, KeyStore, Limits

BODIES: dict[str, Any] = {
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2},
    "/v1/completions": {"model": "tiny", "prompt": "hello", "max_tokens": 2},
}
UNKNOWN = ("none", "empty", "no bearer", "wrong", "revoked", "expired")
STATES = (*UNKNOWN, "over its limit", "valid", "other tenant", "admin")
DENIED = dict.fromkeys(UNKNOWN, 401)
# What each policy answers to each state; a policy that is not here fails the test, and so does a route without one.
ANSWERS: dict[Policy, dict[str, int]] = {
    Policy.OPEN: dict.fromkeys(STATES, 200),
    Policy.KEYED: dict.fromkeys(STATES, 200) | DENIED,
    Policy.METERED: dict.fromkeys(STATES, 200) | DENIED | {"over its limit": 429},
    Policy.ADMIN: dict.fromkeys(STATES, 403) | DENIED | {"admin": 200},
}


@dataclass
class Keyed:
    running: Any
    store: KeyStore
    headers: dict[str, dict[str, str]]
    client: httpx2.Client

    def ask(self, method: str, path: str, state: str) -> httpx2.Response:
        body = BODIES.get(path)
        url = self.running.url + path.replace("{name:path}", "tiny")
        content = None if body is None else json.dumps(body).encode()
        return self.client.request(method, url, headers=self.headers[state], content=content)


@pytest.fixture
def keyed(serve: Callable[..., Any], make_tiny_model: Callable[..., Any]) -> Iterator[Keyed]:
    running = serve(make_tiny_model(script="ok"))
    store = KeyStore(running.home)
    made: dict[str, tuple[Key, str]] = {
        "valid": store.create("valid"),
        "other tenant": store.create("other"),
        "admin": store.create("admin", admin=True),
        "revoked": store.create("revoked"),
        "expired": store.create("expired", expires_at=int(time.time()) - 5),
        "over its limit": store.create("limited", Limits(requests_per_minute=1)),
    }
    store.revoke(made["revoked"][0])
    headers = {state: {"authorization": f"Bearer {text}"} for state, (_, text) in made.items()}
    headers |= {
        "none": {},
        "empty": {"authorization": "Bearer"},
        "no bearer": {"authorization": made["valid"][1]},
        "wrong": {"authorization": f"Bearer fb-{made['valid'][0].id}-{'0' * 64}"},
    }
    with httpx2.Client() as client:
        keyed = Keyed(running, store, headers, client)
        assert keyed.ask("POST", "/v1/completions", "over its limit").status_code == 200
        yield keyed


def test_every_route_by_every_state(keyed: Keyed) -> None:
    table = keyed.running.app.state.endpoints
    assert {route.path for route in keyed.running.app.routes} == {endpoint.path for endpoint in table}
    assert [e.path for e in table if e.policy is Policy.OPEN] == ["/livez"]
    for endpoint in table:
        for state in STATES:
            response = keyed.ask(endpoint.method, endpoint.path, state)
            expected = ANSWERS[endpoint.policy][state]
            assert response.status_code == expected, (endpoint.path, state, response.text)
            if expected >= 400:
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
                assert response.headers["x-request-id"]
            if expected == 429:
                assert 1 <= int(response.headers["retry-after"]) <= 61
                assert 0 < int(response.headers["retry-after-ms"]) <= 61_000


def test_there_is_nothing_to_find_without_a_key(keyed: Keyed) -> None:
    for method, path in (
        ("GET", "/nowhere"),
        ("GET", "/v1/chat/completions"),
        ("DELETE", "/v1/models"),
        ("GET", "/livez/"),
    ):
        assert keyed.ask(method, path, "none").status_code == 401
        assert keyed.ask(method, path, "valid").status_code in (404, 405)
    assert keyed.ask("OPTIONS", "/v1/models", "none").status_code == 401


def test_the_openai_client_understands(keyed: Keyed) -> None:
    url = f"{keyed.running.url}/v1"
    client = openai.OpenAI(base_url=url, api_key="fb-nonsense", max_retries=0)
    with client, pytest.raises(openai.AuthenticationError) as no:
        client.models.list()
    assert no.value.code == "invalid_api_key"
    text = keyed.headers["over its limit"]["authorization"].removeprefix("Bearer ")
    with openai.OpenAI(base_url=url, api_key=text, max_retries=0) as client:
        assert client.models.list().data
        with pytest.raises(openai.RateLimitError) as limited:
            client.completions.create(model="tiny", prompt="x")
    assert limited.value.code == "rate_limit_exceeded"


def test_keys_change_while_the_server_runs(serve: Callable[..., Any], make_tiny_model: Callable[..., Any]) -> None:
    running = serve(make_tiny_model(script="ok"))
    models = f"{running.url}/v1/models"
    assert httpx2.get(models).status_code == 200
    store = KeyStore(running.home)
    key, text = store.create("first")
    headers = {"authorization": f"Bearer {text}"}
    assert httpx2.get(models).status_code == 401
    assert httpx2.get(models, headers=headers).status_code == 200
    store.revoke(key)
    assert httpx2.get(models, headers=headers).status_code == 401
    assert httpx2.get(models).status_code == 401, "revoking the last key must not open the server"


def test_many_wrong_keys_are_told_to_wait_and_good_ones_are_not(keyed: Keyed) -> None:
    replies = [keyed.ask("GET", "/v1/models", "wrong") for _ in range(REFUSED_PER_MINUTE + 1)]
    assert [reply.status_code for reply in replies] == [401] * REFUSED_PER_MINUTE + [429]
    assert 1 <= int(replies[-1].headers["retry-after"]) <= 60
    assert keyed.ask("GET", "/v1/models", "revoked").status_code == 429
    assert keyed.ask("GET", "/v1/models", "none").status_code == 401, "no key is no guess"
    assert keyed.ask("POST", "/v1/completions", "valid").status_code == 200


def test_refusals_count_by_address_and_minute() -> None:
    now = 5.0
    refusals = Refusals(lambda: now)
    for _ in range(REFUSED_PER_MINUTE):
        refusals.count("one")
    refusals.count("other")
    with pytest.raises(LimitReached) as caught:
        refusals.count("one")
    assert caught.value.retry_after_s == 60
    now = 65.0
    refusals.count("one")
    for number in range(20_000):
        refusals.count(str(number))
    assert len(refusals._counts) == 10_000


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (("10.1.2.3", 5), "10.1.2.3"),
        (("::ffff:10.1.2.3", 5), "10.1.2.3"),
        (("2001:db8:1:2:3::4", 5), "2001:db8:1:2::/64"),
        (None, ""),
    ],
)
def test_an_address_is_whose_it_is(client: Any, address: str) -> None:
    assert _address({"client": client}) == address


def test_concurrency_is_per_key(serve: Callable[..., Any]) -> None:
    running = serve(max_requests=4)
    store = KeyStore(running.home)
    one, other = (store.create(name, Limits(concurrency=1))[1] for name in ("one", "other"))
    body = {"model": "tiny", "prompt": "go on", "max_tokens": 400, "stream": True}

    def ask(text: str, **fields: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {text}"}
        return httpx2.post(f"{running.url}/v1/completions", json=body | fields, headers=headers)

    with httpx2.stream("POST", f"{running.url}/v1/completions", json=body, headers={"authorization": f"Bearer {one}"}):
        assert ask(one, max_tokens=1).status_code == 429
        assert ask(other, max_tokens=1).status_code == 200
    deadline = time.monotonic() + 5
    while ask(one, max_tokens=1).status_code == 429 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ask(one, max_tokens=1).status_code == 200, "the seat of a client that hung up is free again"


def test_a_failed_request_gives_its_seat_back(serve: Callable[..., Any], make_tiny_model: Callable[..., Any]) -> None:
    running = serve(make_tiny_model(script="ok"))
    _, text = KeyStore(running.home).create("one", Limits(concurrency=1))
    headers = {"authorization": f"Bearer {text}"}
    for body in ({}, {"model": "x"}, {"model": "tiny", "prompt": "x" * 600}, {"model": "tiny", "prompt": "x", "n": 4}):
        for _ in range(2):
            response = httpx2.post(f"{running.url}/v1/completions", json=body, headers=headers)
            assert response.status_code != 429


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:8000"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "finback"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:8000"}, 403),
        ({"host": "127.0.0.1@evil.example"}, 403),
        ({"origin": "http://localhost:3000"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "http://127.0.0.1.evil.example"}, 403),
    ],
)
def test_an_open_server_refuses_other_sites(
    serve: Callable[..., Any], make_tiny_model: Callable[..., Any], headers: dict[str, str], status: int
) -> None:
    running = serve(make_tiny_model(script="ok"))
    assert httpx2.get(f"{running.url}/v1/models", headers=headers).status_code == status
    _, text = KeyStore(running.home).create("one")
    keyed = httpx2.get(f"{running.url}/v1/models", headers=headers | {"authorization": f"Bearer {text}"})
    assert keyed.status_code == 200, "whoever has a key may come from anywhere"
    assert not any(name.startswith("access-control") for name in keyed.headers)


def test_tenants_share_no_cached_prompt(serve: Callable[..., Any]) -> None:
    running = serve()
    store = KeyStore(running.home)
    one, other = (store.create(name)[1] for name in ("one", "other"))
    body = {"model": "tiny", "prompt": "a long beginning " * 20, "max_tokens": 1}

    def cached(text: str) -> int:
        headers = {"authorization": f"Bearer {text}"}
        response = httpx2.post(f"{running.url}/v1/completions", json=body, headers=headers)
        return int(response.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert [cached(one), cached(one)] == [0, 320]
    assert [cached(other), cached(other)] == [0, 320]


def test_work_does_not_tell_what_others_asked(serve: Callable[..., Any], make_tiny_model: Callable[..., Any]) -> None:
    """What somebody could time: a prompt that another tenant has had takes the very steps of one that nobody had."""
    model = make_tiny_model()
    running = serve(model)
    store = KeyStore(running.home)
    one, other, third = (store.create(name)[1] for name in ("one", "other", "third"))
    secret, unheard = "the launch is at nine " * 15, "the lunch was at noon " * 15

    def work(text: str, prompt: str) -> list[tuple[int, ...]]:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 4}
        model.batches.clear()
        headers = {"authorization": f"Bearer {text}"}
        assert httpx2.post(f"{running.url}/v1/completions", json=body, headers=headers).status_code == 200
        return [tuple(batch.positions) for batch in model.batches]

    fresh = work(one, secret)
    assert work(other, secret) == work(third, unheard) == fresh
    assert len(work(one, secret)[0]) < len(fresh[0]), "one's own prompt is found again"


def test_a_full_queue_is_told_at_once(serve: Callable[..., Any]) -> None:
    running = serve(max_requests=1, max_queue=2)
    body = {"model": "tiny", "prompt": "go on", "max_tokens": 3, "n": 4}  # all or none
    response = httpx2.post(f"{running.url}/v1/completions", json=body)
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "server_busy"
    assert int(response.headers["retry-after"]) >= 1
    assert httpx2.post(f"{running.url}/v1/completions", json=body | {"n": 2}).status_code == 200
