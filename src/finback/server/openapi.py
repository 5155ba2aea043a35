"""The OpenAPI document, made from the route table and the shapes that request bodies are checked against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from finback import __version__
from finback.server.access import Endpoint, Policy
from finback.server.schema import ChatRequest, CompletionRequest, UsageQuery

BODIES: dict[str, type] = {"/v1/chat/completions": ChatRequest, "/v1/completions": CompletionRequest}
QUERIES: dict[str, type] = {"/v1/usage": UsageQuery}
_STREAMED = ("application/json", "text/event-stream")


class ErrorDetail(msgspec.Struct):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct):
    """The body of every response that is not a success."""

    error: ErrorDetail


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The whole document."""
    shapes = [*BODIES.values(), *QUERIES.values(), Error]
    references, schemas = msgspec.json.schema_components(shapes, ref_template="#/components/schemas/{name}")
    named = dict(zip(shapes, references, strict=True))
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        operation = _operation(endpoint, named, schemas)
        paths.setdefault(endpoint.path.replace(":path}", "}"), {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Finback", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(endpoint: Endpoint, named: dict[type, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    body, query = BODIES.get(endpoint.path), QUERIES.get(endpoint.path)
    kinds = _STREAMED if body else ("text/plain",) if endpoint.path == "/metrics" else ("application/json",)
    found: dict[str, Any] = {
        "operationId": endpoint.handler.__name__ + ("" if endpoint.path != "/health" else "_too"),
        "summary": (endpoint.handler.__doc__ or "").strip().splitlines()[0],
        "description": f"For {endpoint.policy.value}.",
        "security": [] if endpoint.policy is Policy.OPEN else [{"key": []}],
        "parameters": [*_in_path(endpoint), *(_in_query(schemas[query.__name__]) if query else [])],
        "responses": {
            "200": {"description": "Success.", "content": {kind: {} for kind in kinds}},
            "default": {"description": "Failure.", "content": {"application/json": {"schema": named[Error]}}},
        },
    }
    if body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": named[body]}}}
    return found


def _in_path(endpoint: Endpoint) -> list[dict[str, Any]]:
    if "{name:path}" not in endpoint.path:
        return []
    return [{"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]


def _in_query(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "in": "query", "schema": shape} for name, shape in schema["properties"].items()]
