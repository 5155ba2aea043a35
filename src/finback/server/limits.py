"""What each key is doing now, and whether it may do more.

Rates are over a sliding minute that is counted second by second. A request counts when it arrives, its prompt when
it is handed to the engine, each token of the answer when it is written: a rate that was reached holds back the next
request and cuts no answer short. Everything here happens on the event loop.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from finback.errors import LimitReached
from finback.server.keys import Key, Limits

Clock = Callable[[], float]
MINUTE_S = 60
BUSY_RETRY_S = 1.0  # after which a place may be free


class Minute:
    """A count over the last sixty seconds. Invariant: ``total`` is the sum of ``_seconds``, which are in order."""

    def __init__(self) -> None:
        self.total = 0
        self._seconds: deque[tuple[int, int]] = deque()  # (second, count)

    def add(self, now: float, count: int) -> None:
        """Count something that happens now."""
        self.total += count
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            count += self._seconds.pop()[1]
        self._seconds.append((second, count))

    def wait(self, now: float, limit: int) -> float:
        """Seconds until the count is below ``limit``: 0 when it is."""
        while self._seconds and _over(self._seconds[0][0]) <= now:
            self.total -= self._seconds.popleft()[1]
        left, wait = self.total, 0.0
        for second, count in self._seconds:
            if left < limit:
                break
            left -= count
            wait = _over(second) - now
        return wait


def _over(second: int) -> int:
    """When all that happened in ``second`` is a minute ago."""
    return second + 1 + MINUTE_S


@dataclass(slots=True)
class Account:
    """One key's use. Invariant: ``running`` is the number of its seats that are taken."""

    running: int = 0
    requests: Minute = field(default_factory=Minute)
    tokens: Minute = field(default_factory=Minute)


class Seat:
    """A request's place among those of its key, from its arrival until no more work is done for it."""

    def __init__(self, tenant: str, account: Account, clock: Clock) -> None:
        self.tenant = tenant  # the key's id; "" without keys
        self._account = account
        self._clock = clock
        self._taken = True
        account.running += 1

    def count_tokens(self, count: int) -> None:
        """Note that so many tokens were taken in or written."""
        self._account.tokens.add(self._clock(), count)

    def leave(self) -> None:
        """Give the place back. A second call does nothing."""
        if self._taken:
            self._taken = False
            self._account.running -= 1


class Accounts:
    """The accounts of all keys that were used since the start. The key None is everybody on a server without keys."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, Account] = {}

    def enter(self, key: Key | None) -> Seat:
        """A place for a new request; LimitReached when the key has none now."""
        tenant = "" if key is None else key.id
        account = self._accounts.setdefault(tenant, Account())
        now = self._clock()
        if key is not None:
            _require_room(account, key.limits, now)
        account.requests.add(now, 1)
        return Seat(tenant, account, self._clock)


def _require_room(account: Account, limits: Limits, now: float) -> None:
    if limits.concurrency is not None and account.running >= limits.concurrency:
        raise LimitReached(
            f"this key may have {limits.concurrency} requests running at a time", retry_after_s=BUSY_RETRY_S
        )
    for limit, minute, what in (
        (limits.requests_per_minute, account.requests, "requests"),
        (limits.tokens_per_minute, account.tokens, "tokens"),
    ):
        wait = 0.0 if limit is None else minute.wait(now, limit)
        if wait > 0:
            raise LimitReached(f"this key may use {limit} {what} in a minute", retry_after_s=wait)
