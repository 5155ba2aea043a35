"""The OpenAPI document: complete, self-consistent, and true to what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        return {node["$ref"]} if "$ref" in node else set().union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


def test_it_tells_every_route(serve: Callable[..., Any]) -> None:
    running = serve()
    document = httpx2.get(f"{running.url}/openapi.json").json()
    table = running.app.state.endpoints
    told = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    assert told == {(endpoint.path.replace(":path", ""), endpoint.method) for endpoint in table}
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert [operation["security"] for operation in operations].count([]) == 1
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]


def test_any_body_is_answered_or_refused(serve: Callable[..., Any]) -> None:
    """Fields of the document with any value: 200 or 400 in the right shape, never the server's fault."""
    running = serve(max_requests=4)
    schemas = httpx2.get(f"{running.url}/openapi.json").json()["components"]["schemas"]
    sound: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
        "/v1/completions": {"prompt": "x"},
    }
    fields = {"/v1/chat/completions": "ChatRequest", "/v1/completions": "CompletionRequest"}
    path_and_fields = st.sampled_from(list(sound)).flatmap(
        lambda path: st.tuples(
            st.just(path),
            st.dictionaries(st.sampled_from(sorted(schemas[fields[path]]["properties"])), VALUES, max_size=3),
        )
    )
    with httpx2.Client(base_url=running.url) as client:

        @settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(path_and_fields)
        def check(drawn: tuple[str, dict[str, Any]]) -> None:
            path, given_fields = drawn
            body = {"model": "tiny", "max_tokens": 2} | sound[path] | given_fields
            content = json.dumps(body).encode(errors="surrogatepass")
            response = client.post(path, content=content)
            assert response.status_code in (200, 400, 404), response.text
            if response.status_code != 200:
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}

        check()
    assert httpx2.get(f"{running.url}/v1/status").json()["state"] == "serving"
