"""What each key is doing now, and whether it may do more.

Rates are over a sliding minute that is counted second by second. A request counts when it arrives, its prompt when it
is handed to the engine, each token of the answer when it is written: a rate that was reached holds back the next
request and cuts no answer short.

Budgets (tokens in a day, money) are never exceeded. What is spent stands in the ledger, so a restart forgets nothing;
what running requests may still take at most is set aside here until they are booked. A request whose answer has no
limit of its own gets what is left. Everything here happens on the event loop.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from finback.errors import BudgetSpent, Forbidden, LimitReached
from finback.meter.ledger import Spent
from finback.meter.money import Prices
from finback.server.keys import Key, Limits

Clock = Callable[[], float]
MINUTE_S, DAY_S = 60, 86_400
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
        self._forget(now)

    def wait(self, now: float, limit: int) -> float:
        """Seconds until the count is below ``limit``: 0 when it is."""
        self._forget(now)
        left, wait = self.total, 0.0
        for second, count in self._seconds:
            if left < limit:
                break
            left -= count
            wait = _over(second) - now
        return wait

    def _forget(self, now: float) -> None:
        while self._seconds and _over(self._seconds[0][0]) <= now:
            self.total -= self._seconds.popleft()[1]


def _over(second: int) -> int:
    """When all that happened in ``second`` is a minute ago."""
    return second + 1 + MINUTE_S


@dataclass(slots=True)
class Account:
    """One key's use. Invariant: what is set aside is the sum of what its seats set aside, and never negative."""

    running: int = 0  # seats that are taken
    tokens_aside: int = 0
    money_aside: int = 0
    requests: Minute = field(default_factory=Minute)
    tokens: Minute = field(default_factory=Minute)


class Seat:
    """A request's place among those of its key, from its arrival until it is booked."""

    def __init__(self, key: Key | None, account: Account, till: Till) -> None:
        self.tenant = "" if key is None else key.id
        self.priority = 0 if key is None else key.priority
        self._limits = Limits() if key is None else key.limits
        self._account = account
        self._till = till
        self._taken = True
        self._tokens_aside = self._money_aside = 0
        account.running += 1

    def reserve(self, prompts: Sequence[int], room: Sequence[int], max_tokens: int | None) -> int | None:
        """Set aside the most that a request can take; LimitReached when the budgets do not have it.

        ``prompts``: tokens of each different prompt. ``room``: for each answer, the tokens that fit into the context.
        Returns ``max_tokens``, or what it must be where it was left open and a budget allows less.
        """
        limits, prompt = self._limits, sum(prompts)
        if limits.tokens_per_day is None and limits.money is None:
            return max_tokens
        tokens, money = self._till.left(self.tenant, limits, self._account)
        if max_tokens is None:
            prices = self._till.prices
            affordable = [] if tokens is None else [(tokens - prompt) // len(room)]
            if money is not None and prices is not None and prices.output:
                affordable.append((money - prices.most(prompt, 0)) // (prices.output * len(room)))
            max_tokens = min([max(room), *(max(1, count) for count in affordable)])
        output = sum(min(fits, max_tokens) for fits in room)
        self._set_aside(prompt + output, tokens, self._till.cost_at_most(prompt, output), money)
        return max_tokens

    def count_tokens(self, count: int) -> None:
        """Note that so many tokens were taken in or written."""
        self._account.tokens.add(self._till.clock(), count)

    def leave(self) -> None:
        """Give the place back, and what was set aside. A second call does nothing."""
        if self._taken:
            self._taken = False
            self._account.running -= 1
            self._account.tokens_aside -= self._tokens_aside
            self._account.money_aside -= self._money_aside

    def _set_aside(self, tokens: int, tokens_left: int | None, money: int, money_left: int | None) -> None:
        if tokens_left is not None and tokens > tokens_left:
            soon = tokens <= tokens_left + self._account.tokens_aside
            raise LimitReached(
                f"the request may take {tokens} tokens, and of this key's {self._limits.tokens_per_day} for the day "
                f"(UTC) {max(tokens_left, 0)} are left or not set aside for running requests",
                retry_after_s=BUSY_RETRY_S if soon else self._till.seconds_to_midnight(),
                hint="ask for fewer tokens (max_tokens), or wait until requests end",
            )
        if money_left is not None and money > money_left:
            raise BudgetSpent(
                "the request may cost more than what is left of this key's money",
                hint="ask for fewer tokens (max_tokens), or have the limit raised",
            )
        self._tokens_aside, self._money_aside = tokens, money
        self._account.tokens_aside += tokens
        self._account.money_aside += money


@dataclass(frozen=True, slots=True)
class Till:
    """What budgets are checked against."""

    spent: Callable[[str], Spent]  # by a key's id
    prices: Prices | None = None
    clock: Clock = time.monotonic
    wall_clock: Clock = time.time

    def left(self, key_id: str, limits: Limits, account: Account) -> tuple[int | None, int | None]:
        """Tokens of today and money that are neither spent nor set aside; None: no such budget."""
        if limits.money is not None and self.prices is None:
            raise Forbidden("this key has a money limit, and this server has no prices to count money with")
        spent = self.spent(key_id)
        tokens = None if limits.tokens_per_day is None else limits.tokens_per_day - spent.tokens_today
        money = None if limits.money is None else limits.money - spent.money
        return (
            None if tokens is None else tokens - account.tokens_aside,
            None if money is None else money - account.money_aside,
        )

    def cost_at_most(self, prompt_tokens: int, output_tokens: int) -> int:
        """The cost if nothing of the prompt is cached, or all of it where that costs more."""
        return 0 if self.prices is None else self.prices.most(prompt_tokens, output_tokens)

    def seconds_to_midnight(self) -> float:
        """Until the next day begins, UTC."""
        return DAY_S - self.wall_clock() % DAY_S


class Accounts:
    """The accounts of all keys that were used since the start. The key None is everybody on a server without keys."""

    def __init__(self, till: Till) -> None:
        self._till = till
        self._accounts: dict[str, Account] = {}

    def enter(self, key: Key | None) -> Seat:
        """A place for a new request; LimitReached when the key has none now."""
        account = self._accounts.setdefault("" if key is None else key.id, Account())
        now = self._till.clock()
        if key is not None:
            self._require_room(key, account, now)
        account.requests.add(now, 1)
        return Seat(key, account, self._till)

    def _require_room(self, key: Key, account: Account, now: float) -> None:
        limits = key.limits
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
        self._require_budget(key)

    def _require_budget(self, key: Key) -> None:
        """Refuse before the body is read when nothing at all is left."""
        limits = key.limits
        if limits.tokens_per_day is None and limits.money is None:
            return
        tokens, money = self._till.left(key.id, limits, Account())
        if tokens is not None and tokens <= 0:
            raise LimitReached(
                f"this key's {limits.tokens_per_day} tokens for the day (UTC) are used",
                retry_after_s=self._till.seconds_to_midnight(),
            )
        if money is not None and money <= 0:
            raise BudgetSpent("this key's money is spent", hint="have the limit raised")
