"""The HTTP face: routes, error bodies, streams of events, and clients that hang up.

A route reads a bounded body, hands it to a dialect and sends what comes back. Every error, whatever raised it, leaves
in OpenAI's shape. An answer belongs to its connection: when the client is gone, its requests are aborted.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finback.errors import FinbackError, InvalidRequest, PromptTooLong, UnknownModel
from finback.server.openai import Answer, Json, Served, start_chat, start_completion
from finback.server.schema import ChatRequest, CompletionRequest, parse
from finback.server.worker import EngineWorker

MAX_BODY_BYTES = 32 << 20
CLIENT_CLOSED = 499  # nginx's status for a client that left; no one reads it
KEEP_ALIVE_S = 10.0  # a comment this often while a long prompt is read, so that no proxy gives up

json_bytes = msgspec.json.encode


def create_app(model: Served, worker: EngineWorker) -> Starlette:
    """The application that serves one model. The worker runs while the application does."""
    service = Service(model, worker)
    routes = [
        Route("/livez", service.live),
        Route("/readyz", service.ready),
        Route("/health", service.ready),
        Route("/v1/models", service.models),
        Route("/v1/models/{name:path}", service.one_model),
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
        Route("/v1/completions", service.completions, methods=["POST"]),
    ]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        worker.start()
        try:
            yield
        finally:
            await asyncio.to_thread(worker.stop)

    handlers: dict[Any, Any] = {
        FinbackError: on_finback_error,
        HTTPException: on_http_error,
        Exception: on_bug,
    }
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    app.add_middleware(RequestId)
    return app


class Service:
    """The routes of one served model."""

    def __init__(self, model: Served, worker: EngineWorker) -> None:
        self._model = model
        self._worker = worker
        self._since = int(time.time())

    async def live(self, request: Request) -> Response:
        """The process answers."""
        return respond({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Requests can be served."""
        alive = self._worker.alive
        return respond({"status": "ok" if alive else "stopping"}, status=200 if alive else 503)

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return respond({"object": "list", "data": [self._card()]})

    async def one_model(self, request: Request) -> Response:
        """GET /v1/models/{name}."""
        self._require_model(request.path_params["name"])
        return respond(self._card())

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = parse(await read_body(request), ChatRequest)
        self._require_model(body.model)
        return await self._answer(request, body, lambda: start_chat(body, self._model, self._worker))

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = parse(await read_body(request), CompletionRequest)
        self._require_model(body.model)
        return await self._answer(request, body, lambda: start_completion(body, self._model, self._worker))

    async def _answer(
        self, request: Request, body: ChatRequest | CompletionRequest, start: Callable[[], Awaitable[Answer]]
    ) -> Response:
        answer = await start()
        if body.stream:
            chunks = answer.chunks(usage_chunk=body.wants_usage_chunk)
            headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
            return StreamingResponse(events(chunks, answer), media_type="text/event-stream", headers=headers)
        whole = await whole_or_gone(request, answer)
        return respond(whole) if whole is not None else Response(status_code=CLIENT_CLOSED)

    def _card(self) -> Json:
        card = {"id": self._model.name, "object": "model", "created": self._since, "owned_by": "finback"}
        return {**card, "context_length": self._model.context}

    def _require_model(self, name: str) -> None:
        if name != self._model.name:
            raise UnknownModel(f"the model {name!r} is not served here", hint=f"this server has {self._model.name!r}")


async def read_body(request: Request) -> bytes:
    """The whole body, up to MAX_BODY_BYTES."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body is larger than {MAX_BODY_BYTES >> 20} MiB")
    return bytes(body)


async def whole_or_gone(request: Request, answer: Answer) -> Json | None:
    """The whole answer; None when the client hung up meanwhile, which stops the work."""
    working = asyncio.ensure_future(answer.whole())
    leaving = asyncio.ensure_future(_until_disconnect(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
        answer.close()


async def _until_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def events(chunks: AsyncIterator[Json], answer: Answer) -> AsyncIterator[bytes]:
    """Server-sent events of an answer, with a comment now and then while there is nothing to say yet."""
    pending = asyncio.ensure_future(anext(chunks, None))
    try:
        while True:
            done, _ = await asyncio.wait((pending,), timeout=KEEP_ALIVE_S)
            if not done:
                yield b": keep-alive\n\n"
                continue
            chunk = pending.result()
            if chunk is None:
                break
            yield b"data: " + json_bytes(chunk) + b"\n\n"
            pending = asyncio.ensure_future(anext(chunks, None))
        yield b"data: [DONE]\n\n"
    except FinbackError as error:
        yield b"data: " + json_bytes(error_body(error)) + b"\n\n"
    finally:
        pending.cancel()
        answer.close()


def respond(body: Json, status: int = 200) -> Response:
    """A JSON response."""
    return Response(json_bytes(body), status, media_type="application/json")


def error_body(error: FinbackError) -> Json:
    """OpenAI's error object; a hint follows the message on a line of its own."""
    message = f"{error.message}\nhint: {error.hint}" if error.hint else error.message
    kind = "server_error" if status_of(error) >= 500 else "invalid_request_error"
    parameter = getattr(error, "parameter", None)
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code_of(error)}}


def status_of(error: FinbackError) -> int:
    """The HTTP status that says whose fault an error is."""
    if isinstance(error, UnknownModel):
        return 404
    return 400 if isinstance(error, InvalidRequest) else 500


def code_of(error: FinbackError) -> str | None:
    """OpenAI's code, where clients look for one."""
    if isinstance(error, PromptTooLong):
        return "context_length_exceeded"
    return "model_not_found" if isinstance(error, UnknownModel) else None


async def on_finback_error(_: Request, error: Exception) -> Response:
    """Any typed error."""
    assert isinstance(error, FinbackError)
    return respond(error_body(error), status_of(error))


async def on_http_error(_: Request, error: Exception) -> Response:
    """Routing errors: no such path, wrong method, body too large."""
    assert isinstance(error, HTTPException)
    body = {"message": error.detail, "type": "invalid_request_error", "param": None, "code": None}
    return Response(json_bytes({"error": body}), error.status_code, error.headers, "application/json")


async def on_bug(_: Request, error: Exception) -> Response:
    """Anything else is ours; the log has it, the client does not."""
    body = {
        "message": "internal error; the server's log says more",
        "type": "server_error",
        "param": None,
        "code": None,
    }
    return respond({"error": body}, 500)


class RequestId:
    """Gives every response an ``x-request-id``, which clients log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; add the header to its response."""
        request_id = uuid.uuid4().hex.encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id)]}
            await send(message)

        await self._app(scope, receive, send_with_id)
