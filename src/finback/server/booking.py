"""One request's work and its account: from the moment the engine takes it in until no more is done for it.

Whether a client reads to the end, hangs up, or the engine fails, a booking settles once: when every job has ended and
its counts are final, its row in the ledger is closed and its seat is free. An answer's end is told to the client after
that, so what it saw is what is in the books.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from finback.errors import LedgerError
from finback.meter.ledger import Entry, Ledger, now_ms
from finback.meter.money import Prices
from finback.server import logs
from finback.server.limits import Seat
from finback.server.metrics import Metrics
from finback.server.worker import EngineWorker, Job, Work

log = logging.getLogger("finback.server")

# The statuses that rows get, by how the worst of the request's choices ended.
STATUSES = {"stop": 200, "length": 200, "abort": 499, "error": 500}


class Taken(NamedTuple):
    """Tokens that a request took, all its choices together; a prompt that several choices share counts once."""

    prompt_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Visit:
    """A request that came in, before it is known what it asks."""

    id: str
    route: str
    seat: Seat
    arrived_ms: int = field(default_factory=now_ms)
    arrived: float = field(default_factory=time.monotonic)  # durations must not jump when the clock is set

    def at_ms(self, moment: float) -> int:
        """A moment of the monotonic clock, in milliseconds since the epoch."""
        return self.arrived_ms + round((moment - self.arrived) * 1000)


class Booking:
    """A request in the engine. Closing it aborts what still runs; it settles by itself after that."""

    def __init__(self, visit: Visit, work: Work, n: int, desk: Desk) -> None:
        """``n``: so many jobs in a row share a prompt."""
        self.work = work
        self.streams = work.streams
        self.reasoning_tokens = 0  # of what was read so far: only readers can tell reasoning from the rest
        self._visit = visit
        self._n = n
        self._desk = desk
        self._settling: asyncio.Task[None] | None = None

    @property
    def taken(self) -> Taken:
        """What it took until now."""
        usages = [stream.usage for stream in self.streams]
        prompts = usages[:: self._n]
        return Taken(
            sum(usage.prompt_tokens for usage in prompts),
            sum(usage.cached_tokens for usage in prompts),
            self.reasoning_tokens,
            sum(usage.completion_tokens for usage in usages),
        )

    def entry(self) -> Entry:
        """The row of the request as it is now, still open."""
        visit, taken = self._visit, self.taken
        first = min((s.first_token_at for s in self.streams if s.first_token_at is not None), default=None)
        return Entry(
            visit.id,
            visit.seat.tenant,
            self._desk.model,
            visit.route,
            visit.arrived_ms,
            *taken,
            cost=self._desk.cost(taken),
            first_token_ms=None if first is None else visit.at_ms(first),
        )

    @property
    def queue_ms(self) -> int | None:
        """From its arrival until it was first computed; None while it has no token."""
        started = min((s.started_at for s in self.streams if s.started_at is not None), default=None)
        return None if started is None else self._visit.at_ms(started) - self._visit.arrived_ms

    def close(self) -> None:
        """Read no further: jobs that still run are aborted, and the request settles."""
        self.work.close()
        self._settle()

    async def settle(self) -> None:
        """Wait until the jobs have ended and the request is in the books; LedgerError if it cannot be."""
        await asyncio.shield(self._settle())

    def _settle(self) -> asyncio.Task[None]:
        if self._settling is None:
            self._settling = asyncio.create_task(self._finish())
            self._desk.keep(self._settling)
        return self._settling

    async def _finish(self) -> None:
        try:
            await asyncio.gather(*(stream.ended for stream in self.streams))
            reasons = [str(stream.finish_reason) for stream in self.streams]
            closed = replace(
                self.entry(),
                ended_ms=self._visit.at_ms(time.monotonic()),
                finish_reason=",".join(reasons),
                status=max(STATUSES[reason] for reason in reasons),
            )
            per_token = [s.seconds_per_token for s in self.streams if s.seconds_per_token is not None]
            queue_ms = self.queue_ms
            self._desk.metrics.answered(closed, queue_ms, per_token)
            _note(closed, queue_ms)
            await asyncio.wrap_future(self._desk.ledger.put(closed))
        except LedgerError:
            self._desk.metrics.unbooked += 1
            raise
        finally:
            self._visit.seat.leave()


def _note(entry: Entry, queue_ms: int | None) -> None:
    first = None if entry.first_token_ms is None else entry.first_token_ms - entry.arrived_ms
    logs.note(
        "answer",
        request_id=entry.id,
        key=entry.key_id,
        model=entry.model,
        finish_reason=entry.finish_reason,
        prompt_tokens=entry.prompt_tokens,
        cached_tokens=entry.cached_tokens,
        output_tokens=entry.output_tokens,
        queue_ms=queue_ms,
        first_token_ms=first,
        duration_ms=(entry.ended_ms or 0) - entry.arrived_ms,
    )


class Desk:
    """Takes requests in: sets their budget aside, hands them to the engine, opens their rows."""

    def __init__(
        self,
        model: str,
        context: int,
        worker: EngineWorker,
        ledger: Ledger,
        metrics: Metrics,
        prices: Prices | None,
    ) -> None:
        self.model = model
        self.ledger = ledger
        self.metrics = metrics
        self._context = context
        self._worker = worker
        self._prices = prices
        self._settling: set[asyncio.Task[None]] = set()

    async def submit(self, visit: Visit, jobs: Sequence[Job], n: int) -> Booking:
        """The booking of jobs that the engine has taken in, all or none; ``n`` in a row share a prompt."""
        prompts = [len(job.prompt) for job in jobs[::n]]
        room = [self._context - len(job.prompt) for job in jobs]
        seat = visit.seat
        if min(room) > 0:  # or else the engine refuses
            max_tokens = seat.reserve(prompts, room, jobs[0].params.max_tokens)
            jobs = [Job(job.prompt, replace(job.params, max_tokens=max_tokens)) for job in jobs]
        work = await self._worker.submit(jobs, seat.count_tokens, tenant=seat.tenant, priority=seat.priority)
        seat.count_tokens(sum(prompts))
        booking = Booking(visit, work, n, self)
        self.ledger.put(booking.entry())
        return booking

    def cost(self, taken: Taken) -> int:
        """What a request costs; 0 without prices."""
        prices = self._prices
        return 0 if prices is None else prices.cost(taken.prompt_tokens, taken.cached_tokens, taken.output_tokens)

    def keep(self, task: asyncio.Task[None]) -> None:
        """Keep a settling task until it is done, also when its client has gone."""
        self._settling.add(task)
        task.add_done_callback(self._forget)

    async def drain(self) -> None:
        """Wait until every request that ends is booked."""
        while self._settling:
            await asyncio.wait(self._settling)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._settling.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, LedgerError):  # those are in the log already
            log.error("a request was not booked", exc_info=error)
