"""Which tokens of which requests run in the next step. Integers only: no arrays, no model, no text.

There is one rule and there are no phases: a request has tokens, some of them computed, and computing chases
the total under a token budget. A prompt that is cut into chunks, an answer that grows by a token and a
request that is computed anew after it lost its blocks are all the same subtraction
(:attr:`Request.num_pending`).

Answers come first: a request that lacks one token gets it in every step, with guessed tokens behind it where that
pays (:mod:`finback.engine.speculation`). What the step has left for prompts is bounded by the clock, so that a long
prompt slows answers down but never stops them. Prompts are read in order of priority, then of what their tenant was
served so far, then of arrival.

A request is admitted when there are blocks for every token that it has; the blocks of a beginning that is in the
cache already are shared instead of computed, except for the last token, whose logits are wanted. A request whose next
block a running one is about to fill waits for it. Tenants take turns: the next one to be admitted is of the tenant
with the fewest running requests, and a tenant that has at least two more than another makes room for it.

An answer that outgrows its blocks takes a free one; when there is none, the running request that ranks last (lowest
priority, latest arrival) gives up its blocks and waits to be computed again. The one that ranks first never gives way,
and the pool holds at least one whole context, so every request ends.
"""

from __future__ import annotations

from array import array
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from finback.engine.kv_cache import KVCache
from finback.engine.request import Request
from finback.engine.speculation import worth_drafting


class Work(NamedTuple):
    """One request's share of a step: compute positions ``start`` to ``stop`` into ``blocks``."""

    request: Request
    start: int
    stop: int
    blocks: array[int]
    drafts: tuple[int, ...] = ()  # guessed tokens behind the request's own

    @property
    def tokens(self) -> list[int]:
        """What is computed."""
        return [*self.request.tokens[self.start : self.stop], *self.drafts]

    @property
    def num_choices(self) -> int:
        """Tokens that can be chosen after the step: the one after the request's last, and one after each draft."""
        return 1 + len(self.drafts) if self.stop >= len(self.request.tokens) else 0


@dataclass(slots=True)
class _Tenant:
    """Whoever shares fairly with others. Invariant: there is one exactly while it has requests."""

    waiting: list[Request] = field(default_factory=list)  # best rank first
    running: int = 0
    served: int = 0  # tokens computed, counted from where the least served tenant stood when this one came


def _rank(request: Request) -> tuple[int, int]:
    """Smaller: more important."""
    return -request.priority, request.arrival


def _nothing_is_stored(name: bytes, block: int) -> bool:
    return False


class Clock(Protocol):
    """What the scheduler wants to know about time."""

    def allowance(self, answers: int, prompts: int) -> int:
        """Tokens of ``prompts`` prompts that may be computed beside ``answers`` tokens of answers."""

    def seconds(self, answers: int) -> float:
        """What a step of ``answers`` tokens of answers takes."""


class Scheduler:
    """Waiting and running requests. Invariant: :meth:`check_integrity` passes between any two calls."""

    def __init__(
        self,
        cache: KVCache,
        *,
        batch_tokens: int,
        max_requests: int,
        clock: Clock,
        most_drafts: int = 0,
        restore: Callable[[bytes, int], bool] = _nothing_is_stored,
    ) -> None:
        """``most_drafts``: tokens of one request that are guessed for one step, at most.

        ``restore(name, block)`` fills a block from elsewhere with what the name stands for, if it can.
        """
        self._cache = cache
        self._batch_tokens = batch_tokens
        # Each running answer needs a token of every step's budget: never run more than can be served.
        self._max_running = min(max_requests, batch_tokens)
        self._clock = clock
        self._most_drafts = most_drafts
        self._restore = restore
        self._tenants: dict[str, _Tenant] = {}
        self._running: list[Request] = []  # best rank first
        self._promised: dict[bytes, Request] = {}  # name of a block -> the running request that will fill it
        self._arrivals = 0
        self.num_waiting = 0  # requests that hold no blocks
        self.preemptions = 0
        self.query_tokens = 0  # of prompts that were looked up in the cache
        self.hit_tokens = 0  # of those, found

    @property
    def num_running(self) -> int:
        """Requests that hold blocks."""
        return len(self._running)

    def share_of_queue(self, tenant: str, places: int) -> int:
        """How many of the queue's ``places`` are left to ``tenant``: all tenants that wait share them equally.

        Any thread may ask: the list is made in one go.
        """
        queues = {name: len(other.waiting) for name, other in list(self._tenants.items()) if other.waiting}
        waiting = queues.setdefault(tenant, 0)
        return places // len(queues) - waiting

    def add(self, request: Request) -> None:
        """Queue ``request``."""
        request.arrival = self._arrivals
        self._arrivals += 1
        if request.tenant not in self._tenants:
            least = min((tenant.served for tenant in self._tenants.values()), default=0)
            self._tenants[request.tenant] = _Tenant(served=least)
        self._queue(request)

    def remove(self, request: Request) -> None:
        """Forget ``request``, wherever it is, and free its blocks."""
        tenant = self._tenants[request.tenant]
        if request in self._running:
            self._stop(request)
        else:
            tenant.waiting.remove(request)
            self.num_waiting -= 1
        if not tenant.running and not tenant.waiting:
            del self._tenants[request.tenant]

    def schedule(self) -> list[Work]:
        """Choose the next step's work within the budget: answers, then prompts."""
        self._extend_running()
        self._admit_waiting()
        plan = self._answers()
        rows = sum(work.stop - work.start for work in plan)
        budget = self._batch_tokens - rows
        reading = sorted((r for r in self._running if r.num_pending > 1), key=self._turn_to_read)
        if plan and reading:
            budget = min(budget, self._clock.allowance(rows, len(reading)))
        for request in reading:
            if budget <= 0:
                break
            count = min(request.num_pending, budget)
            plan.append(self._work(request, count))
            budget -= count
        return plan

    def commit(self, work: Work) -> None:
        """Note that ``work`` is computed, and let others find its full blocks. A failed step has changed nothing.

        The tokens that were chosen stand in the request already: drafts count as far as they are among them.
        """
        request, size = work.request, self._cache.block_size
        request.num_computed = min(work.stop, len(request.tokens) - 1)
        self._tenants[request.tenant].served += work.stop - work.start
        if request.names is not None:
            names = request.names.of(request.tokens, request.num_computed // size)
            for index in range(work.start // size, len(names)):
                self._cache.name(request.id, index, names[index])
                self._promised.pop(names[index], None)

    def _answers(self) -> list[Work]:
        """A token of every answer, and guessed ones where they pay."""
        writing = [request for request in self._running if request.num_pending == 1]
        plan, rows = [], len(writing)
        for request in writing:
            drafts = self._drafts(request, len(writing), rows)
            rows += len(drafts)
            start = request.num_computed
            plan.append(Work(request, start, start + 1 + len(drafts), self._cache.table(request.id), drafts))
        return plan

    def _drafts(self, request: Request, answers: int, rows: int) -> tuple[int, ...]:
        """Guesses for the blocks that the request has: what may turn out wrong costs nobody a block."""
        if request.drafter is None:
            return ()
        space = len(self._cache.table(request.id)) * self._cache.block_size - len(request.tokens)
        most = min(self._most_drafts, space, request.max_length - len(request.tokens) - 1, self._batch_tokens - rows)
        guess = request.drafter.guess(request.tokens, self._most_drafts)
        most = min(most, len(guess))
        return tuple(guess[: worth_drafting(request.drafter.chance, most, answers, rows, self._clock.seconds)])

    def _turn_to_read(self, request: Request) -> tuple[int, int, int]:
        return -request.priority, self._tenants[request.tenant].served, request.arrival

    def _turn_to_start(self, request: Request) -> tuple[int, int, int, int]:
        tenant = self._tenants[request.tenant]
        return -request.priority, tenant.running, tenant.served, request.arrival

    def _work(self, request: Request, count: int) -> Work:
        start = request.num_computed
        return Work(request, start, start + count, self._cache.table(request.id))

    def _extend_running(self) -> None:
        """Give each running request blocks for its tokens, first rank first, at the expense of the last."""
        for request in list(self._running):
            while request in self._running and not self._cache.grow(request.id, len(request.tokens)):
                self._preempt(self._running[-1])

    def _preempt(self, request: Request) -> None:
        self._stop(request)
        request.num_computed = 0
        self._queue(request)
        self.preemptions += 1

    def _queue(self, request: Request) -> None:
        insort(self._tenants[request.tenant].waiting, request, key=_rank)
        self.num_waiting += 1

    def _stop(self, request: Request) -> None:
        """Take a running request's blocks and promises away."""
        self._running.remove(request)
        self._tenants[request.tenant].running -= 1
        self._cache.release(request.id)
        for name in self._names(request):
            if self._promised.get(name) is request:
                del self._promised[name]

    def _admit_waiting(self) -> None:
        """Start waiting requests in their turn, while each running one keeps a spare block to grow into."""
        while (request := self._next_to_start()) is not None and self._start(request):
            pass

    def _next_to_start(self) -> Request | None:
        if not self.num_waiting:
            return None
        full = len(self._running) >= self._max_running
        heads = (self._first_ready(tenant.waiting) for tenant in self._tenants.values())
        ready = (r for r in heads if r is not None and not (full and self._victim(r) is None))
        return min(ready, key=self._turn_to_start, default=None)

    def _first_ready(self, waiting: list[Request]) -> Request | None:
        return next((request for request in waiting if not self._is_promised(request)), None)

    def _start(self, request: Request) -> bool:
        """Run ``request``, if need be in the place of requests that it goes before."""
        while len(self._running) >= self._max_running or not self._admit(request):
            victim = self._victim(request)
            if victim is None:
                return False
            self._preempt(victim)
        tenant = self._tenants[request.tenant]
        tenant.waiting.remove(request)
        tenant.running += 1
        self.num_waiting -= 1
        insort(self._running, request, key=_rank)
        return True

    def _victim(self, request: Request) -> Request | None:
        """The running request that is last to keep its place when ``request`` wants one; None if all go before it."""
        fair = self._tenants[request.tenant].running + 2

        def must_yield(other: Request) -> bool:
            if other.priority != request.priority:
                return other.priority < request.priority
            return self._tenants[other.tenant].running >= fair

        def last(other: Request) -> tuple[int, int, int]:
            return -other.priority, self._tenants[other.tenant].running, other.arrival

        return max(filter(must_yield, self._running), key=last, default=None)

    def _admit(self, request: Request) -> bool:
        """Give a request its blocks: those of its beginning that are in the cache, and new ones."""
        names = self._names(request)
        found = self._cache.adopt(request.id, names)
        spare = self._cache.num_free - self._cache.missing(request.id, len(request.tokens))
        if spare < len(self._running):
            self._cache.release(request.id)
            return False
        self._cache.grow(request.id, len(request.tokens))
        found = self._restored(request, names, found)
        request.num_computed = found * self._cache.block_size
        for name in names[found:]:
            self._promised.setdefault(name, request)
        self._count_hit(request)
        return True

    def _restored(self, request: Request, names: list[bytes], found: int) -> int:
        """Fill the blocks after the first ``found`` from what is stored; returns how many hold what they should."""
        table = self._cache.table(request.id)
        while found < len(names) and self._restore(names[found], table[found]):
            self._cache.name(request.id, found, names[found])
            found += 1
        return found

    def _is_promised(self, request: Request) -> bool:
        """Whether a running request, no less important, is about to compute what this one needs next."""
        names = self._names(request)
        found = self._cache.find(names)
        other = self._promised.get(names[found]) if found < len(names) else None
        return other is not None and other.priority >= request.priority

    def _names(self, request: Request) -> list[bytes]:
        """Names of the blocks that a request could share; at least one token is left to compute."""
        if request.names is None:
            return []
        return request.names.of(request.tokens, (len(request.tokens) - 1) // self._cache.block_size)

    def _count_hit(self, request: Request) -> None:
        if request.num_cached is None:  # not when it comes back
            request.num_cached = request.num_computed
            self.query_tokens += request.num_prompt
            self.hit_tokens += request.num_cached

    def check_integrity(self) -> None:
        """Raise AssertionError unless queues, tables and counts agree."""
        self._cache.check_integrity()
        waiting = [request for tenant in self._tenants.values() for request in tenant.waiting]
        assert len(waiting) == self.num_waiting, "the waiting are miscounted"
        for request in (*waiting, *self._running):
            assert 0 <= request.num_computed < len(request.tokens) <= request.max_length, "progress is out of range"
        for request in self._running:
            held = len(self._cache.table(request.id)) * self._cache.block_size
            assert request.num_computed <= held, "computed tokens without blocks"
        assert all(r.num_computed == 0 for r in waiting), "a waiting request keeps computed tokens"
        for queue in (self._running, *(tenant.waiting for tenant in self._tenants.values())):
            assert sorted(queue, key=_rank) == queue, "a queue is out of order"
        for name, tenant in self._tenants.items():
            assert tenant.waiting or tenant.running, "a tenant without requests"
            assert tenant.running == sum(r.tenant == name for r in self._running), "a tenant's requests are miscounted"
            assert all(r.tenant == name for r in tenant.waiting), "a request waits in another's queue"
        assert all(r in self._running for r in self._promised.values()), "a promise that nobody keeps"
