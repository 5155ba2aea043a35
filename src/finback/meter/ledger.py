"""The ledger: one row for every request that the engine took in, durable before the end of its answer is told.

A row is opened when the engine takes a request in and closed when its last work is done, with true counts also when
the client hung up. One thread writes: it takes whatever has gathered and commits it together, so that a hundred
answers that end at once share one wait for the disk. Rows hold who, which model, how many tokens, when, and how it
ended; never a word of what was said. Where rows are kept is behind :class:`Books`.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, Protocol

from finback.errors import LedgerError

log = logging.getLogger("finback.ledger")

MAX_BATCH = 1000  # rows of one commit
TRIES, PAUSE_S = 5, 1.0  # a full disk may have room again in a moment

Grouping = Literal["key", "day", "model"]
GROUP_COLUMNS: dict[Grouping, str] = {"key": "key_id", "day": "day", "model": "model"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One request's row. It is open while ``ended_ms`` is None. Times are milliseconds since the epoch."""

    id: str
    key_id: str  # "" on a server without keys
    model: str
    route: str
    arrived_ms: int
    prompt_tokens: int
    cached_tokens: int = 0  # of the prompt
    reasoning_tokens: int = 0  # of the output
    output_tokens: int = 0
    cost: int = 0  # see meter.money
    first_token_ms: int | None = None
    ended_ms: int | None = None
    finish_reason: str | None = None  # of each choice; "lost": the server died
    status: int | None = None  # the HTTP status that says how it ended, also for an answer that was streamed


class Spent(NamedTuple):
    """What a key has used, as far as budgets ask."""

    tokens_today: int  # UTC
    money: int  # ever


class Sums(NamedTuple):
    """The sums over some requests."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    output_tokens: int = 0
    cost: int = 0


# The columns of every store's tables, in order.
ENTRY_COLUMNS = tuple(field.name for field in fields(Entry))
SUMMED_COLUMNS = Sums._fields[1:]  # without the count of requests


class Books(Protocol):
    """Where rows are kept."""

    def write(self, entries: Sequence[Entry]) -> None:
        """Open or close rows, all or none, and wait until they would survive a loss of power. Closing twice changes
        nothing. Only the ledger's thread calls this.
        """

    def spent(self, key_id: str, day: str) -> Spent:
        """What a key has used until now."""

    def usage(self, by: Grouping, *, key_id: str | None, since: str) -> dict[str, Sums]:
        """Sums of closed rows by key, day or model, from the day ``since`` on."""

    def close(self) -> None:
        """Let go of them."""


class Ledger:
    """Writes rows in the order in which they come. Invariant: a future that is done without error is on the disk."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._queue: queue.SimpleQueue[tuple[Entry, Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="finback-ledger", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> Future[None]:
        """Open or close a row; the future is done when it is durable, or holds a LedgerError."""
        written: Future[None] = Future()
        self._queue.put((entry, written))
        return written

    def spent(self, key_id: str) -> Spent:
        """What a key has used, today and ever."""
        return self._books.spent(key_id, day_of(now_ms()))

    def usage(self, by: Grouping, *, key_id: str | None = None, days: int | None = None) -> dict[str, Sums]:
        """Sums by key, day or model; of one key, over so many days up to today."""
        since = "" if days is None else day_of(now_ms() - (days - 1) * 86_400_000)
        return self._books.usage(by, key_id=key_id, since=since)

    def close(self) -> None:
        """Write what has come until now, and stop."""
        self._queue.put(None)
        self._thread.join()
        self._books.close()

    def _run(self) -> None:
        going = True
        while going:
            batch = [self._queue.get()]
            while not self._queue.empty() and len(batch) < MAX_BATCH:  # this thread is the only reader
                batch.append(self._queue.get())
            going = None not in batch
            self._commit([item for item in batch if item is not None])

    def _commit(self, batch: list[tuple[Entry, Future[None]]]) -> None:
        error = self._write([entry for entry, _ in batch]) if batch else None
        for _, written in batch:
            if error is None:
                written.set_result(None)
            else:
                written.set_exception(error)

    def _write(self, entries: list[Entry]) -> LedgerError | None:
        for remaining in reversed(range(TRIES)):
            try:
                self._books.write(entries)
                return None
            except Exception as error:
                log.error("the ledger could not write %d rows: %s", len(entries), error)
                failure = LedgerError(f"the ledger cannot be written: {error}")
            if remaining:
                time.sleep(PAUSE_S)
        for entry in entries:
            log.error("not in the ledger: %s", entry)
        return failure


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def day_of(at_ms: int) -> str:
    """The UTC day, as 2026-01-31."""
    return time.strftime("%Y-%m-%d", time.gmtime(at_ms / 1000))
