"""Which tokens of which requests run in the next step. Integers only: no arrays, no model, no text.

There is one rule and there are no phases: a request has tokens, some of them computed, and computing chases
the total under a token budget. A prompt that is cut into chunks, an answer that grows by a token and a
request that is computed anew after it lost its blocks are all the same subtraction
(:attr:`Request.num_pending`).

A request is admitted when there are blocks for every token that it has; the blocks of a beginning that is in the
cache already are shared instead of computed, except for the last token, whose logits are wanted. An answer that
outgrows its blocks takes a free one; when there is none, the youngest request gives up its blocks and waits to be
computed again. The oldest one is never the victim of another, and the pool holds at least one whole context, so every
request ends.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import NamedTuple

from finback.engine.kv_cache import KVCache
from finback.engine.request import Request


class Work(NamedTuple):
    """One request's share of a step: compute ``tokens[start:stop]`` into ``blocks``."""

    request: Request
    start: int
    stop: int
    blocks: array[int]

    @property
    def completes(self) -> bool:
        """Whether the step computes the request's last token, so that the next one can be chosen."""
        return self.stop == len(self.request.tokens)


class Scheduler:
    """Waiting and running requests. Invariant: :meth:`check_integrity` passes between any two calls."""

    def __init__(self, cache: KVCache, *, batch_tokens: int, max_requests: int) -> None:
        self._cache = cache
        self._batch_tokens = batch_tokens
        # Each running answer needs a token of every step's budget: never run more than can be served.
        self._max_running = min(max_requests, batch_tokens)
        self._waiting: deque[Request] = deque()  # oldest first
        self._running: list[Request] = []  # oldest first
        self._arrivals = 0
        self.preemptions = 0
        self.query_tokens = 0  # of prompts that were looked up in the cache
        self.hit_tokens = 0  # of those, found

    @property
    def num_waiting(self) -> int:
        """Requests that hold no blocks yet."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that hold blocks."""
        return len(self._running)

    def add(self, request: Request) -> None:
        """Queue ``request``."""
        request.arrival = self._arrivals
        self._arrivals += 1
        self._waiting.append(request)

    def remove(self, request: Request) -> None:
        """Forget ``request``, wherever it is, and free its blocks."""
        queue = self._running if request in self._running else self._waiting
        queue.remove(request)
        self._cache.release(request.id)

    def schedule(self) -> list[Work]:
        """Choose the next step's work within the budget, oldest request first.

        A request gets tokens only when every older one gets all that it lacks: so those that already write their
        answers stand before those whose prompts are still being read, and a long prompt stalls no answer.
        """
        self._extend_running()
        self._admit_waiting()
        budget = self._batch_tokens
        plan = []
        for request in self._running:
            count = min(request.num_pending, budget)
            if count == 0:
                break
            plan.append(self._work(request, count))
            budget -= count
        return plan

    def commit(self, work: Work) -> None:
        """Note that ``work`` is computed, and let others find its full blocks. A failed step has changed nothing."""
        request, size = work.request, self._cache.block_size
        request.num_computed = work.stop
        if request.names is not None:
            names = request.names.of(request.tokens, work.stop // size)
            for index in range(work.start // size, len(names)):
                self._cache.name(request.id, index, names[index])

    def _work(self, request: Request, count: int) -> Work:
        start = request.num_computed
        return Work(request, start, start + count, self._cache.table(request.id))

    def _extend_running(self) -> None:
        """Give each running request blocks for its tokens, oldest first, at the expense of the youngest."""
        for request in list(self._running):
            while request in self._running and not self._cache.grow(request.id, len(request.tokens)):
                self._preempt(self._running[-1])

    def _preempt(self, request: Request) -> None:
        self._running.remove(request)
        self._cache.release(request.id)
        request.num_computed = 0
        self._waiting.appendleft(request)
        self.preemptions += 1

    def _admit_waiting(self) -> None:
        """Start waiting requests as they came, while each running one keeps a spare block to grow into."""
        while self._waiting and len(self._running) < self._max_running:
            if not self._admit(self._waiting[0]):
                break
            self._running.append(self._waiting.popleft())

    def _admit(self, request: Request) -> bool:
        """Give a request its blocks: those of its beginning that are in the cache, and new ones."""
        found = self._cache.adopt(request.id, self._names(request))
        spare = self._cache.num_free - self._cache.missing(request.id, len(request.tokens))
        if spare < len(self._running):
            self._cache.release(request.id)
            return False
        self._cache.grow(request.id, len(request.tokens))
        request.num_computed = found * self._cache.block_size
        self._count_hit(request)
        return True

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
        for request in (*self._waiting, *self._running):
            assert 0 <= request.num_computed < len(request.tokens) <= request.max_length, "progress is out of range"
        for request in self._running:
            held = len(self._cache.table(request.id)) * self._cache.block_size
            assert request.num_computed <= held, "computed tokens without blocks"
        assert all(r.num_computed == 0 for r in self._waiting), "a waiting request keeps computed tokens"
        for queue in (self._waiting, self._running):
            arrivals = [request.arrival for request in queue]
            assert arrivals == sorted(arrivals), "a queue is out of order"
