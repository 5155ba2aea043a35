"""Rates against the plain definition, and seats."""

from __future__ import annotations

import random

import pytest

from finback.errors import LimitReached
from finback.meter.ledger import Spent
from finback.server.keys import Key, Limits
from finback.server.limits import Accounts, Minute, Till


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def accounts_of(clock: Clock) -> Accounts:
    return Accounts(Till(lambda key_id: Spent(0, 0), clock=clock))


def key(**limits: int) -> Key:
    return Key("id", "name", b"", 0, None, None, False, 0, Limits(**limits))


def test_no_minute_holds_more_than_the_limit() -> None:
    """Whatever comes when: never more than the limit in any sixty seconds, and waiting as told is enough."""
    random_ = random.Random(5)
    minute, events, now = Minute(), [], 1000.0
    for _ in range(3000):
        now += random_.random() * 8
        wait = minute.wait(now, 10)
        assert wait == 0 or sum(at > now - 61 for at in events) >= 10
        if wait > 0 and random_.random() < 0.5:
            now += wait
            wait = minute.wait(now, 10)
            assert wait == 0
        if wait == 0:
            minute.add(now, 1)
            events.append(now)
        assert sum(at > now - 60 for at in events) <= 10


def test_what_is_kept_of_a_minute_is_bounded() -> None:
    minute = Minute()
    for at in range(10_000):
        minute.wait(at / 10, 10**9)
        minute.add(at / 10, 1)
    assert len(minute._seconds) <= 62


def test_requests_per_minute() -> None:
    clock = Clock()
    accounts = accounts_of(clock)
    mine, other = (
        key(requests_per_minute=2),
        Key("other", "", b"", 0, None, None, False, 0, Limits(requests_per_minute=1)),
    )
    for _ in range(2):
        accounts.enter(mine).leave()
    with pytest.raises(LimitReached) as caught:
        accounts.enter(mine)
    assert 60 <= (caught.value.retry_after_s or 0) <= 61
    accounts.enter(other).leave()
    clock.now += caught.value.retry_after_s or 0
    accounts.enter(mine).leave()


def test_tokens_per_minute_hold_back_the_next_request() -> None:
    clock = Clock()
    accounts = accounts_of(clock)
    seat = accounts.enter(key(tokens_per_minute=100))
    seat.count_tokens(60)
    accounts.enter(key(tokens_per_minute=100)).leave()
    clock.now += 10
    seat.count_tokens(40)
    with pytest.raises(LimitReached) as caught:
        accounts.enter(key(tokens_per_minute=100))
    assert 50 <= (caught.value.retry_after_s or 0) <= 51


def test_concurrency() -> None:
    accounts = accounts_of(Clock())
    seats = [accounts.enter(key(concurrency=2)) for _ in range(2)]
    with pytest.raises(LimitReached):
        accounts.enter(key(concurrency=2))
    seats[0].leave()
    seats[0].leave()
    accounts.enter(key(concurrency=2))
    with pytest.raises(LimitReached):
        accounts.enter(key(concurrency=2))


def test_a_refused_request_does_not_count() -> None:
    accounts = accounts_of(Clock())
    for _ in range(3):
        with pytest.raises(LimitReached):
            accounts.enter(key(concurrency=0, requests_per_minute=3))
    accounts.enter(key(requests_per_minute=1))


def test_everybody_without_a_key_is_unlimited() -> None:
    accounts = accounts_of(Clock())
    assert len([accounts.enter(None) for _ in range(1000)]) == 1000
