"""The engine's thread, and the one hop between it and the event loop.

The engine is synchronous and single-threaded; HTTP is not. Commands (add, abort) cross to the engine's thread through a
queue and take effect before its next step; outputs cross back as calls on the stream's event loop. Closing a stream,
for whatever reason, aborts its job: the next step no longer computes it, and tells what it took.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from finback.engine.request import SamplingParams, StepOutput, Usage
from finback.engine.stats import EngineStats
from finback.errors import EngineError, Unavailable

log = logging.getLogger("finback.server")

Command = Callable[[], None]


class Job(NamedTuple):
    """What the engine is asked to do: continue a prompt."""

    prompt: Sequence[int]
    params: SamplingParams


class StepEngine(Protocol):
    """What the worker needs of an engine."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""

    def add(
        self,
        request_id: str,
        prompt_tokens: Sequence[int],
        params: SamplingParams,
        *,
        tenant: str = "",
        priority: int = 0,
    ) -> None:
        """Take a request in, or raise."""

    def check_queue(self, tenant: str, places: int = 1) -> None:
        """Raise QueueFull unless so many more may wait; on any thread."""

    def abort(self, request_id: str) -> None:
        """Forget a request."""

    def step(self) -> list[StepOutput]:
        """Compute once."""

    def stats(self) -> EngineStats:
        """What it does and has done."""

    def check_integrity(self) -> None:
        """Raise unless its books are right."""


class Stream:
    """What one job has brought so far. ``ended`` is done when the engine has done its last work for it."""

    def __init__(self, request_id: str, job: Job) -> None:
        self.request_id = request_id
        self.job = job
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.usage = Usage(len(job.prompt), 0)
        self.started_at: float | None = None  # of the monotonic clock, as the other moments
        self.first_token_at: float | None = None
        self.ended_at: float | None = None
        self.finish_reason: str | None = None

    def count(self, output: StepOutput) -> None:
        """Note what the engine tells. The counts are final once it has told how the job ended."""
        if output.tokens and self.first_token_at is None:
            self.started_at, self.first_token_at = output.started, time.monotonic()
        written = self.usage.completion_tokens + len(output.tokens)
        self.usage = output.usage or self.usage._replace(completion_tokens=written)
        if output.finish_reason is not None and not self.ended.done():
            self.finish_reason = output.finish_reason
            self.ended_at = time.monotonic()
            self.ended.set_result(None)

    @property
    def seconds_per_token(self) -> float | None:
        """The mean time between tokens, once the job has ended with more than one."""
        more = self.usage.completion_tokens - 1
        if more < 1 or self.first_token_at is None or self.ended_at is None:
            return None
        return (self.ended_at - self.first_token_at) / more


class Work:
    """The jobs of one request in the engine: iterate over what they bring, and close it when leaving early.

    An iteration gives the job's index and its output, in the order in which they come, or None after a nudge.
    """

    def __init__(
        self, streams: Sequence[Stream], on_tokens: Callable[[int], None], abort: Callable[[str], None]
    ) -> None:
        self.streams = streams
        self.loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[tuple[int, StepOutput] | None] = asyncio.Queue()
        self._on_tokens = on_tokens
        self._abort = abort
        self._unread = len(streams)  # jobs whose end was not read yet

    def __aiter__(self) -> Work:
        return self

    async def __anext__(self) -> tuple[int, StepOutput] | None:
        if not self._unread:
            raise StopAsyncIteration
        item = await self._inbox.get()
        if item is not None and item[1].finish_reason is not None:
            self._unread -= 1
            if item[1].error is not None:
                raise item[1].error
        return item

    def put(self, index: int, output: StepOutput) -> None:
        """Take what the engine tells of a job."""
        if output.tokens:
            self._on_tokens(len(output.tokens))
        self.streams[index].count(output)
        self._inbox.put_nowait((index, output))

    def nudge(self) -> None:
        """Give whoever iterates a None."""
        self._inbox.put_nowait(None)

    def close(self) -> None:
        """Read no further; jobs that still run are aborted."""
        self._unread = 0
        for stream in self.streams:
            if not stream.ended.done():
                self._abort(stream.request_id)


class EngineWorker:
    """Runs ``engine.step()`` on its own thread. Invariant: ``_running`` holds exactly the unfinished jobs."""

    def __init__(self, engine: StepEngine, renew: Callable[[], StepEngine] | None = None) -> None:
        """``renew`` makes another engine when this one cannot be trusted after a failure."""
        self._engine = engine
        self._renew = renew
        self.failures = 0  # of steps, since the start
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._running: dict[str, tuple[Work, int]] = {}  # with the job's index; touched by the engine's thread only
        self._arriving: Counter[str] = Counter()  # jobs that the engine has not taken in; event loop only
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

    def stats(self) -> EngineStats:
        """What the engine does and has done."""
        return self._engine.stats()

    @property
    def alive(self) -> bool:
        """Whether requests can be served."""
        return self._thread.is_alive() and not self._stopping

    async def submit(
        self, jobs: Sequence[Job], on_tokens: Callable[[int], None], *, tenant: str = "", priority: int = 0
    ) -> Work:
        """Jobs that the engine has taken in, all or none; what it refuses is raised here.

        ``tenant`` and ``priority``: as in Engine.add. ``on_tokens`` is told on the event loop how many tokens were
        written, whenever some were.
        """
        self.require_room(tenant, len(jobs))
        work = Work([Stream(f"req-{next(self._ids)}", job) for job in jobs], on_tokens, self._request_abort)
        accepted: asyncio.Future[None] = work.loop.create_future()
        self._arriving[tenant] += len(jobs)
        self._commands.put(lambda: self._add(work, accepted, tenant=tenant, priority=priority))
        try:
            await accepted
        except asyncio.CancelledError:
            work.close()
            raise
        finally:
            self._arriving.subtract({tenant: len(jobs)})
            self._arriving += Counter()  # without those that are zero
        return work

    def require_room(self, tenant: str, jobs: int = 1) -> None:
        """Raise unless so many jobs may wait. It tells at once: the engine itself takes them between two steps."""
        if not self.alive:
            raise Unavailable("the server is stopping", retry_after_s=5.0)
        self._engine.check_queue(tenant, self._arriving[tenant] + jobs)

    def _request_abort(self, request_id: str) -> None:
        self._commands.put(lambda: self._abort(request_id))

    # On the engine's thread from here on.

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._obey(wait=not self._engine.has_work)
                if not self._stopping and self._engine.has_work:
                    self._deliver(self._engine.step())
            except Exception as error:
                self._recover(error)
        self._fail_all(EngineError("the server is shutting down"))

    def _obey(self, *, wait: bool) -> None:
        """Run the queued commands; when there is nothing to compute, sleep until one comes."""
        if wait:
            self._commands.get()()
        while not self._commands.empty():  # this thread is the only reader
            self._commands.get()()

    def _recover(self, error: Exception) -> None:
        """End the running jobs with the error, and go on; with another engine if this one's books are wrong."""
        log.error("the engine failed; %d running jobs are ended", len(self._running), exc_info=error)
        self.failures += 1
        jobs = list(self._running)
        self._fail_all(error if isinstance(error, EngineError) else EngineError(f"the engine failed: {error!r}"))
        try:
            for request_id in jobs:
                self._engine.abort(request_id)
            self._engine.check_integrity()
        except Exception:
            if self._renew is not None:
                log.exception("the engine cannot be trusted any more; another one takes its place")
                self._engine = self._renew()

    def _deliver(self, outputs: Sequence[StepOutput]) -> None:
        """Hand a step's outputs over, all with one call: waking the other thread costs more than what it is told."""
        told: dict[asyncio.AbstractEventLoop, list[tuple[Work, int, StepOutput]]] = {}
        for output in outputs:
            running = self._running.get(output.request_id)
            if running is None:
                continue  # it was told an error already
            if output.finish_reason is not None:
                del self._running[output.request_id]
            told.setdefault(running[0].loop, []).append((*running, output))
        for loop, items in told.items():
            _tell(loop, _put_all, items)

    def _add(self, work: Work, accepted: asyncio.Future[None], *, tenant: str, priority: int) -> None:
        """Add all jobs or none: no step comes between them, so one that is taken back has cost nothing."""
        for count, stream in enumerate(work.streams):
            job = stream.job
            try:
                self._engine.add(stream.request_id, job.prompt, job.params, tenant=tenant, priority=priority)
            except Exception as error:
                for added in work.streams[:count]:
                    self._engine.abort(added.request_id)
                _tell(work.loop, _settle, accepted, error)
                return
        self._running |= {stream.request_id: (work, index) for index, stream in enumerate(work.streams)}
        _tell(work.loop, _settle, accepted, None)

    def _abort(self, request_id: str) -> None:
        """The engine's last output for the request comes with the next step."""
        if request_id in self._running:
            self._engine.abort(request_id)

    def _stop(self) -> None:
        self._stopping = True

    def _fail_all(self, error: EngineError) -> None:
        self._deliver([StepOutput(name, finish_reason="error", error=error) for name in self._running])


def _put_all(items: Sequence[tuple[Work, int, StepOutput]]) -> None:
    for work, index, output in items:
        work.put(index, output)


def _tell(loop: asyncio.AbstractEventLoop, action: Callable[..., None], *arguments: object) -> None:
    """Run ``action`` on the event loop; a loop that is gone has no one left to tell."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(action, *arguments)


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():  # its waiter was cancelled
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
