"""The HTTP face: routes and their policies, streams of events, and clients that hang up.

A route reads a bounded body, hands it to a dialect and sends what comes back. An answer belongs to its connection:
when the client is gone, its requests are aborted. A request keeps its seat among those of its key until then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

import psutil
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from finback.errors import FinbackError, Forbidden, Unavailable, UnknownModel
from finback.meter.ledger import Ledger
from finback.meter.money import Prices
from finback.server import logs
from finback.server.access import NO_ROUTE, Endpoint, Guard, Policy
from finback.server.booking import Desk, Visit
from finback.server.edge import Edge, Gate
from finback.server.keys import Key, KeyStore
from finback.server.limits import Accounts, Till
from finback.server.metrics import CONTENT_TYPE, Metrics
from finback.server.openai import Answer, Served, Submit, start_chat, start_completion
from finback.server.openapi import document
from finback.server.replies import Json, error_body, json_bytes, on_bug, on_finback_error, on_http_error, respond
from finback.server.schema import ChatRequest, CompletionRequest, UsageQuery, parse, parse_query
from finback.server.usage import usage_report
from finback.server.worker import EngineWorker

MAX_BODY_BYTES = 32 << 20
STOPPING_RETRY_S = 5.0  # by then another server may have taken over
BODY_GRACE_S, BODY_BYTES_PER_S = 10.0, 16 << 10  # a body may take that long, and longer if it comes at this rate
CLIENT_CLOSED = 499  # nginx's status for a client that left; no one reads it
KEEP_ALIVE_S = 10.0  # a comment this often, so that no proxy gives up while a long prompt is read

Body = TypeVar("Body", ChatRequest, CompletionRequest)
Start = Callable[[Body, Served, Submit], Awaitable[Answer]]


def endpoints(service: Service) -> list[Endpoint]:
    """The route table."""
    return [
        Endpoint("GET", "/livez", Policy.OPEN, service.live),
        Endpoint("GET", "/readyz", Policy.KEYED, service.ready),
        Endpoint("GET", "/health", Policy.KEYED, service.ready),
        Endpoint("GET", "/v1/models", Policy.KEYED, service.models),
        Endpoint("GET", "/v1/models/{name:path}", Policy.KEYED, service.one_model),
        Endpoint("GET", "/openapi.json", Policy.KEYED, service.openapi),
        Endpoint("GET", "/metrics", Policy.ADMIN, service.metrics),
        Endpoint("GET", "/v1/status", Policy.ADMIN, service.status),
        Endpoint("GET", "/v1/usage", Policy.KEYED, service.usage),
        Endpoint("POST", "/v1/chat/completions", Policy.METERED, service.chat),
        Endpoint("POST", "/v1/completions", Policy.METERED, service.completions),
    ]


def create_app(
    model: Served,
    worker: EngineWorker,
    keys: KeyStore,
    ledger: Ledger,
    *,
    gate: Gate | None = None,
    prices: Prices | None = None,
    always_keyed: bool = False,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> Starlette:
    """The application that serves one model. The worker and the ledger live as long as it does.

    ``always_keyed``: ask for keys even while there are none.
    """
    metrics = Metrics()
    desk = Desk(model.name, model.context, worker, ledger, metrics, prices)
    gate = gate or Gate()
    service = Service(model, worker, keys, desk, Accounts(Till(ledger.spent, prices)), gate, max_body_bytes)
    table = endpoints(service)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        worker.start()
        try:
            yield
        finally:
            await asyncio.to_thread(worker.stop)
            await desk.drain()
            await asyncio.to_thread(ledger.close)

    handlers: dict[Any, Any] = {
        FinbackError: on_finback_error,
        HTTPException: on_http_error,
        Exception: on_bug,
    }
    routes = [endpoint.route for endpoint in table]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    app.router.redirect_slashes = False  # a redirect would repeat whatever Host the client sent
    app.state.endpoints = table
    app.add_middleware(Guard, endpoints=table, keys=keys, always=always_keyed)
    app.add_middleware(Edge, gate=gate, on_end=partial(_on_end, metrics))
    return app


class Service:
    """The routes of one served model."""

    def __init__(
        self,
        model: Served,
        worker: EngineWorker,
        keys: KeyStore,
        desk: Desk,
        accounts: Accounts,
        gate: Gate,
        max_body_bytes: int,
    ) -> None:
        self._model = model
        self._worker = worker
        self._keys = keys
        self._desk = desk
        self._accounts = accounts
        self._gate = gate
        self._max_body_bytes = max_body_bytes
        self._since = int(time.time())

    async def live(self, request: Request) -> Response:
        """The process answers."""
        return respond({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Requests can be served."""
        ready = self._worker.alive and not self._gate.draining
        return respond({"status": "ok" if ready else "stopping"}, status=200 if ready else 503)

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return respond({"object": "list", "data": [self._card()]})

    async def one_model(self, request: Request) -> Response:
        """GET /v1/models/{name}."""
        self._require_model(request.path_params["name"])
        return respond(self._card())

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json: what the routes take and give."""
        return respond(document(request.app.state.endpoints))

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, for Prometheus."""
        stats, failures = self._worker.stats(), self._worker.failures
        text = self._desk.metrics.render(stats, engine_failures=failures, connections=self._gate.active)
        return Response(text, media_type=CONTENT_TYPE)

    async def status(self, request: Request) -> Response:
        """GET /v1/status: what the server is doing now."""
        memory = psutil.Process().memory_info().rss
        state = "stopping" if self._gate.draining else "serving"
        card = {"object": "status", "model": self._model.name, "context": self._model.context, "state": state}
        now = {"uptime_s": int(time.time()) - self._since, "memory_bytes": memory}
        return respond({**card, **now, **asdict(self._worker.stats())})

    async def usage(self, request: Request) -> Response:
        """GET /v1/usage: what the key has used; an admin's key may ask for another with ``key``."""
        query = parse_query(request.query_params, UsageQuery)
        key: Key | None = request.scope["key"]
        if query.key is not None and (key is None or query.key not in (key.id, key.name)):
            if key is not None and not key.admin:
                raise Forbidden("only a key made with `finback keys create --admin` may see what others use")
            key = self._keys.named(query.key)
        key_id = "" if key is None else key.id
        by_day = await asyncio.to_thread(self._desk.ledger.usage, "day", key_id=key_id, days=query.days)
        return respond(usage_report(key, by_day, self._desk.ledger.spent(key_id)))

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._metered(request, ChatRequest, start_chat)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._metered(request, CompletionRequest, start_completion)

    async def _metered(self, request: Request, shape: type[Body], start: Start[Body]) -> Response:
        """An answer within the limits of the request's key. The booking keeps the seat, once there is one."""
        if self._gate.draining:
            raise Unavailable("the server is stopping", retry_after_s=STOPPING_RETRY_S)
        key: Key | None = request.scope["key"]
        self._worker.require_room("" if key is None else key.id)
        seat = self._accounts.enter(key)
        visit = Visit(request.scope["request_id"], request.url.path, seat)
        try:
            body = parse(await read_body(request, self._max_body_bytes), shape)
            self._require_model(body.model)
            answer = await start(body, self._model, partial(self._desk.submit, visit))
        except BaseException:
            seat.leave()
            raise
        if body.stream:
            return AnswerStream(answer, usage_chunk=body.wants_usage_chunk)
        whole = await whole_or_gone(request, answer)
        return respond(whole) if whole is not None else Response(status_code=CLIENT_CLOSED)

    def _card(self) -> Json:
        card = {"id": self._model.name, "object": "model", "created": self._since, "owned_by": "finback"}
        return {**card, "context_length": self._model.context, "vocab_size": self._model.tokenizer.vocab_size}

    def _require_model(self, name: str) -> None:
        if name != self._model.name:
            raise UnknownModel(f"the model {name!r} is not served here", hint=f"this server has {self._model.name!r}")


def _on_end(metrics: Metrics, scope: Scope, status: int, seconds: float) -> None:
    route = scope.get("route_path", NO_ROUTE)
    metrics.replied(route, status)
    key = scope.get("key")
    logs.note(
        "request",
        request_id=scope["request_id"],
        key=key and key.id,
        method=scope["method"] if route != NO_ROUTE else "",
        route=route,
        status=status,
        duration_ms=round(seconds * 1000),
    )


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body: bounded in size, not compressed, and not dripping in."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "compressed bodies are not taken")
    if int(request.headers.get("content-length", 0)) > limit:  # h11 has seen that it is a number
        raise HTTPException(413, f"the body is larger than {limit >> 20} MiB")
    body, began = bytearray(), asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(BODY_GRACE_S) as deadline:
            async for part in request.stream():
                body += part
                if len(body) > limit:
                    raise HTTPException(413, f"the body is larger than {limit >> 20} MiB")
                deadline.reschedule(began + BODY_GRACE_S + len(body) / BODY_BYTES_PER_S)
    except TimeoutError:
        raise HTTPException(408, "the body did not come in time", {"connection": "close"}) from None
    except ClientDisconnect:
        raise HTTPException(CLIENT_CLOSED) from None
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


class AnswerStream(StreamingResponse):
    """An answer as server-sent events. Whatever becomes of the response, also before it began, the answer is closed."""

    def __init__(self, answer: Answer, *, usage_chunk: bool) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        body = events(answer.chunks(usage_chunk=usage_chunk), answer)
        super().__init__(body, media_type="text/event-stream", headers=headers)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.close()


async def events(chunks: AsyncIterator[Json | None], answer: Answer) -> AsyncIterator[bytes]:
    """Server-sent events of an answer, with a comment now and then, since there may be nothing to say for long."""
    heart = asyncio.create_task(_beat(answer))
    try:
        async for chunk in chunks:
            yield b": keep-alive\n\n" if chunk is None else b"data: " + json_bytes(chunk) + b"\n\n"
        yield b"data: [DONE]\n\n"
    except FinbackError as error:
        yield b"data: " + json_bytes(error_body(error)) + b"\n\n"
    finally:
        heart.cancel()


async def _beat(answer: Answer) -> None:
    while True:
        await asyncio.sleep(KEEP_ALIVE_S)
        answer.nudge()
