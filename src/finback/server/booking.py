"""One request's work and its account: from the moment the engine takes it in until no more is done for it.

Whether a client reads to the end, hangs up, or the engine fails, a booking settles once: when every job has ended
and its counts are final. An answer's end is told to the client after that, so what it saw is what is in the books.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from finback.server.limits import Seat
from finback.server.worker import EngineWorker, Job, Stream


class Taken(NamedTuple):
    """Tokens that a request took, all its choices together; a prompt that several choices share counts once."""

    prompt_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    output_tokens: int


class Booking:
    """A request in the engine. Closing it aborts what still runs; it settles by itself after that."""

    def __init__(self, seat: Seat, streams: Sequence[Stream], n: int) -> None:
        """``n``: so many streams in a row share a prompt."""
        self.streams = streams
        self.reasoning_tokens = 0  # of what was read so far: only readers can tell reasoning from the rest
        self._seat = seat
        self._n = n
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

    def close(self) -> None:
        """Read no further: jobs that still run are aborted, and the request settles."""
        for stream in self.streams:
            stream.close()
        self._settle()

    async def settle(self) -> None:
        """Wait until the jobs have ended and the request is in the books."""
        await asyncio.shield(self._settle())

    def _settle(self) -> asyncio.Task[None]:
        if self._settling is None:
            self._settling = asyncio.create_task(self._finish())
        return self._settling

    async def _finish(self) -> None:
        try:
            await asyncio.gather(*(stream.ended for stream in self.streams))
        finally:
            self._seat.leave()


async def submit(worker: EngineWorker, seat: Seat, jobs: Sequence[Job], n: int) -> Booking:
    """Hand a request's jobs to the engine, all or none."""
    streams = await worker.submit(jobs, seat.count_tokens, tenant=seat.tenant)
    seat.count_tokens(sum(len(job.prompt) for job in jobs[::n]))
    return Booking(seat, streams, n)
