"""The engine's thread, and the one hop between it and the event loop.

The engine is synchronous and single-threaded; HTTP is not. Commands (add, abort) cross to the engine's thread through a
queue and take effect before its next step; outputs cross back as calls on the stream's event loop. Closing a stream,
for whatever reason, aborts its request: the next step no longer computes it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from finback.engine.request import SamplingParams, StepOutput
from finback.errors import EngineError, FinbackError

log = logging.getLogger("finback.server")

Command = Callable[[], None]
Item = StepOutput | FinbackError


class StepEngine(Protocol):
    """What the worker needs of an engine."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""

    def add(self, request_id: str, prompt_tokens: Sequence[int], params: SamplingParams) -> None:
        """Take a request in, or raise."""

    def abort(self, request_id: str) -> None:
        """Forget a request."""

    def step(self) -> list[StepOutput]:
        """Compute once."""


class Stream:
    """One request's outputs as they arrive: iterate over it on the event loop, and close it when leaving early."""

    def __init__(self, request_id: str, abort: Callable[[str], None]) -> None:
        self.request_id = request_id
        self.loop = asyncio.get_running_loop()
        self.accepted: asyncio.Future[None] = self.loop.create_future()
        self.items: asyncio.Queue[Item] = asyncio.Queue()
        self._abort = abort
        self._ended = False

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> StepOutput:
        if self._ended:
            raise StopAsyncIteration
        item = await self.items.get()
        if isinstance(item, FinbackError):
            self._ended = True
            raise item
        self._ended = item.finish_reason is not None
        return item

    def close(self) -> None:
        """Abort the request unless it has ended."""
        if not self._ended:
            self._ended = True
            self._abort(self.request_id)


class EngineWorker:
    """Runs ``engine.step()`` on its own thread. Invariant: ``_streams`` holds exactly the unfinished requests."""

    def __init__(self, engine: StepEngine) -> None:
        self._engine = engine
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._streams: dict[str, Stream] = {}  # touched by the engine's thread only
        self._ids = itertools.count()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="finback-engine", daemon=True)

    def start(self) -> None:
        """Begin stepping."""
        self._thread.start()

    def stop(self) -> None:
        """End after the current step; unfinished requests get an EngineError."""
        self._commands.put(self._stop)
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether requests can be served."""
        return self._thread.is_alive() and not self._stopping

    async def submit(self, prompt_tokens: Sequence[int], params: SamplingParams) -> Stream:
        """The stream of a request that the engine has taken in; what it refuses is raised here."""
        if not self.alive:
            raise EngineError("the server is shutting down")
        stream = Stream(f"req-{next(self._ids)}", self._request_abort)
        self._commands.put(lambda: self._add(stream, prompt_tokens, params))
        try:
            await stream.accepted
        except asyncio.CancelledError:
            stream.close()
            raise
        return stream

    def _request_abort(self, request_id: str) -> None:
        self._commands.put(lambda: self._abort(request_id))

    # On the engine's thread from here on.

    def _run(self) -> None:
        while not self._stopping:
            self._obey(wait=not self._engine.has_work)
            if not self._stopping and self._engine.has_work:
                self._deliver(self._step())
        self._fail_all(EngineError("the server is shutting down"))

    def _obey(self, *, wait: bool) -> None:
        """Run the queued commands; when there is nothing to compute, sleep until one comes."""
        if wait:
            self._commands.get()()
        while not self._commands.empty():  # this thread is the only reader
            self._commands.get()()

    def _step(self) -> list[StepOutput]:
        try:
            return self._engine.step()
        except Exception as error:
            log.exception("a step failed; its requests are ended")
            for request_id in self._streams:
                self._engine.abort(request_id)
            self._fail_all(error if isinstance(error, FinbackError) else EngineError(f"the engine failed: {error!r}"))
            return []

    def _deliver(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is None:
                continue  # aborted since
            if output.finish_reason is not None:
                del self._streams[output.request_id]
            _tell(stream, stream.items.put_nowait, output.error or output)

    def _add(self, stream: Stream, prompt_tokens: Sequence[int], params: SamplingParams) -> None:
        try:
            self._engine.add(stream.request_id, prompt_tokens, params)
        except FinbackError as error:
            _tell(stream, _settle, stream.accepted, error)
            return
        self._streams[stream.request_id] = stream
        _tell(stream, _settle, stream.accepted, None)

    def _abort(self, request_id: str) -> None:
        if self._streams.pop(request_id, None) is not None:
            self._engine.abort(request_id)

    def _stop(self) -> None:
        self._stopping = True

    def _fail_all(self, error: FinbackError) -> None:
        for stream in self._streams.values():
            _tell(stream, stream.items.put_nowait, error)
        self._streams.clear()


def _tell(stream: Stream, action: Callable[..., None], *arguments: object) -> None:
    """Run ``action`` on the stream's event loop; a loop that is gone has no one left to tell."""
    if not stream.loop.is_closed():
        stream.loop.call_soon_threadsafe(action, *arguments)


def _settle(future: asyncio.Future[None], error: FinbackError | None) -> None:
    if future.done():  # its waiter was cancelled
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
