"""Replies in OpenAI's shape: JSON bodies, and errors with what a client needs to decide whether to try again."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from finback.errors import (
    BudgetSpent,
    FinbackError,
    Forbidden,
    InvalidRequest,
    LimitReached,
    PromptTooLong,
    QueueFull,
    Unauthorized,
    Unavailable,
    UnknownModel,
)

Json = dict[str, Any]

json_bytes = msgspec.json.encode

# (error, status, OpenAI's type, OpenAI's code); the first row that fits counts.
_KINDS: tuple[tuple[type[FinbackError], int, str, str | None], ...] = (
    (Unauthorized, 401, "invalid_request_error", "invalid_api_key"),
    (Forbidden, 403, "permission_error", "forbidden"),
    (BudgetSpent, 429, "insufficient_quota", "insufficient_quota"),
    (LimitReached, 429, "rate_limit_error", "rate_limit_exceeded"),
    (QueueFull, 429, "rate_limit_error", "server_busy"),
    (UnknownModel, 404, "invalid_request_error", "model_not_found"),
    (PromptTooLong, 400, "invalid_request_error", "context_length_exceeded"),
    (InvalidRequest, 400, "invalid_request_error", None),
    (Unavailable, 503, "server_error", "server_stopping"),
    (FinbackError, 500, "server_error", None),
)


def respond(body: Json, status: int = 200) -> Response:
    """A JSON response."""
    return Response(json_bytes(body), status, media_type="application/json")


def error_body(error: FinbackError) -> Json:
    """OpenAI's error object; a hint follows the message on a line of its own."""
    message = f"{error.message}\nhint: {error.hint}" if error.hint else error.message
    _, kind, code = _kind(error)
    return {"error": {"message": message, "type": kind, "param": getattr(error, "parameter", None), "code": code}}


def error_response(error: FinbackError) -> Response:
    """The whole response to a request that failed before its answer began."""
    status, _, _ = _kind(error)
    headers = {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status in (429, 503):
        headers |= retry_headers(getattr(error, "retry_after_s", None))
    return Response(json_bytes(error_body(error)), status, headers, "application/json")


def retry_headers(retry_after_s: float | None) -> dict[str, str]:
    """When to try again, in the ways that clients read; None: waiting does not help."""
    if retry_after_s is None:
        return {"x-should-retry": "false"}
    milliseconds = max(1, math.ceil(retry_after_s * 1000))
    seconds = math.ceil(milliseconds / 1000)
    return {"retry-after": str(seconds), "retry-after-ms": str(milliseconds), "x-should-retry": "true"}


async def on_finback_error(_: Request, error: Exception) -> Response:
    """Any typed error."""
    assert isinstance(error, FinbackError)
    return error_response(error)


async def on_http_error(_: Request, error: Exception) -> Response:
    """Routing errors: no such path, wrong method, body too large."""
    assert isinstance(error, HTTPException)
    body = {"message": error.detail, "type": "invalid_request_error", "param": None, "code": None}
    return Response(json_bytes({"error": body}), error.status_code, error.headers, "application/json")


async def on_bug(_: Request, error: Exception) -> Response:
    """Anything else is ours; the log has it, the client does not."""
    body = {"message": "internal error; the server's log says more", "type": "server_error", "param": None}
    return respond({"error": {**body, "code": None}}, 500)


def _kind(error: FinbackError) -> tuple[int, str, str | None]:
    return next((status, kind, code) for type_, status, kind, code in _KINDS if isinstance(error, type_))
