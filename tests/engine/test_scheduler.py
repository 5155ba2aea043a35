"""The one scheduling rule: budget, order, preemption, and that every request ends."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from finback.engine.kv_cache import BlockNames, KVCache
from finback.engine.request import Request
from finback.engine.scheduler import Scheduler, Work

BLOCK = 4


class Unbounded:
    """A clock for which time does not matter."""

    def allowance(self, answers: int, prompts: int) -> int:
        return 1 << 30

    def seconds(self, answers: int) -> float:
        return 1.0 + 0.01 * answers


class Strict(Unbounded):
    """A clock that lets many answers take many prompt tokens along."""

    def allowance(self, answers: int, prompts: int) -> int:
        return 3 * answers - 3


def make(blocks: int = 16, budget: int = 8, requests: int = 4, most_kept: int = 0, **options: Any) -> Scheduler:
    cache = KVCache(blocks, BLOCK, most_kept=most_kept)
    return Scheduler(cache, batch_tokens=budget, max_requests=requests, **{"clock": Unbounded(), **options})


def request(name: str, prompt: int, answer: int = 4, **fields: Any) -> Request:
    return Request(name, [1] * prompt, num_prompt=prompt, max_length=prompt + answer, **fields)


def step(scheduler: Scheduler) -> list[tuple[str, int, int]]:
    """Run a step as the engine does, with a token for each request that is complete."""
    plan = scheduler.schedule()
    for work in plan:
        completes = bool(work.num_choices)
        work.request.tokens += [2] * completes
        scheduler.commit(work)
        if completes and len(work.request.tokens) == work.request.max_length:
            scheduler.remove(work.request)
    return [(work.request.id, work.start, work.stop) for work in plan]


def test_a_long_prompt_is_cut_and_answers_go_first() -> None:
    scheduler = make(blocks=64, budget=8)
    scheduler.add(request("a", 3, answer=10))
    assert step(scheduler) == [("a", 0, 3)]
    scheduler.add(request("long", 20))
    assert step(scheduler) == [("a", 3, 4), ("long", 0, 7)]
    assert step(scheduler) == [("a", 4, 5), ("long", 7, 14)]
    assert step(scheduler) == [("a", 5, 6), ("long", 14, 20)]
    assert step(scheduler) == [("a", 6, 7), ("long", 20, 21)]


def test_a_running_answer_gets_its_token_in_every_step() -> None:
    scheduler = make(blocks=400, budget=3, requests=64)
    for i in range(3):
        scheduler.add(request(f"r{i}", 1, answer=50))
    for i in range(3, 10):
        scheduler.add(request(f"r{i}", 30))
    for _ in range(40):
        assert {name for name, _, _ in step(scheduler)} == {"r0", "r1", "r2"}
    assert scheduler.num_running == 3


def test_prompts_share_what_is_left_in_order_of_arrival() -> None:
    scheduler = make(blocks=64, budget=10)
    for name in "abc":
        scheduler.add(request(name, 6))
    assert step(scheduler) == [("a", 0, 6), ("b", 0, 4)]
    assert step(scheduler) == [("a", 6, 7), ("b", 4, 6), ("c", 0, 6)]


def test_requests_wait_for_blocks_in_order() -> None:
    scheduler = make(blocks=4, budget=64)
    scheduler.add(request("a", 8))
    scheduler.add(request("big", 12))
    scheduler.add(request("small", 1))
    assert step(scheduler) == [("a", 0, 8)]
    assert scheduler.num_waiting == 2  # nobody overtakes


def test_a_newcomer_leaves_running_answers_room_to_grow() -> None:
    scheduler = make(blocks=7, budget=64)
    scheduler.add(request("a", 4, answer=8))
    scheduler.add(request("b", 4, answer=8))
    step(scheduler)
    scheduler.add(request("c", 8))  # would leave one free block for two answers
    step(scheduler)
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 1)


def test_the_youngest_gives_way_and_is_computed_again() -> None:
    scheduler = make(blocks=4, budget=64)
    old, young = request("old", 4, answer=8), request("young", 4, answer=8)
    scheduler.add(old)
    scheduler.add(young)
    assert step(scheduler) == [("old", 0, 4), ("young", 0, 4)]
    for _ in range(4):
        step(scheduler)
    assert (len(old.tokens), len(young.tokens)) == (9, 9)
    assert step(scheduler) == [("old", 8, 9)]  # both need a third block: four are not enough
    assert scheduler.preemptions == 1
    assert (young.num_computed, scheduler.num_waiting) == (0, 1)
    while old.max_length > len(old.tokens):
        step(scheduler)
    assert step(scheduler) == [("young", 0, 9)]  # prompt and answer, in one go
    while young.max_length > len(young.tokens):
        step(scheduler)
    scheduler.check_integrity()


def test_a_step_that_failed_has_changed_nothing() -> None:
    scheduler = make()
    scheduler.add(request("a", 5))
    assert scheduler.schedule() == scheduler.schedule()


def test_removing_waiting_and_running_requests() -> None:
    scheduler = make(blocks=4)
    running, waiting = request("running", 12), request("waiting", 12)
    scheduler.add(running)
    scheduler.add(waiting)
    scheduler.schedule()
    scheduler.remove(waiting)
    scheduler.remove(running)
    assert scheduler.schedule() == []
    scheduler.check_integrity()


def test_prompts_get_what_answers_allow() -> None:
    scheduler = make(blocks=64, budget=20, clock=Strict())
    scheduler.add(request("a", 4, answer=20))
    assert step(scheduler) == [("a", 0, 4)]
    scheduler.add(request("b", 18, answer=20))
    assert step(scheduler) == [("a", 4, 5)]
    scheduler.add(request("c", 1, answer=20))
    assert step(scheduler) == [("a", 5, 6), ("c", 0, 1), ("b", 0, 3)]


def test_tenants_take_turns() -> None:
    scheduler = make(blocks=64, budget=64, requests=2)
    for i in range(5):
        scheduler.add(request(f"a{i}", 4, answer=1, tenant="a"))
    for i in range(2):
        scheduler.add(request(f"b{i}", 4, answer=1, tenant="b"))
    order = [sorted(name for name, _, _ in step(scheduler)) for _ in range(4)]
    assert order == [["a0", "b0"], ["a1", "b1"], ["a2", "a3"], ["a4"]]


def test_a_tenant_with_many_makes_room_for_one_with_none() -> None:
    scheduler = make(blocks=64, budget=64, requests=3)
    for i in range(5):
        scheduler.add(request(f"a{i}", 4, answer=9, tenant="a"))
    assert {name for name, _, _ in step(scheduler)} == {"a0", "a1", "a2"}
    for i in range(3):
        scheduler.add(request(f"b{i}", 4, answer=9, tenant="b"))
    assert {name for name, _, _ in step(scheduler)} == {"a0", "a1", "b0"}
    assert scheduler.preemptions == 1


def test_priority_goes_first_whatever_the_tenant() -> None:
    scheduler = make(blocks=64, budget=8, requests=2)
    for name, priority in (("a", 0), ("b", 0), ("low", -1), ("high", 5)):
        scheduler.add(request(name, 6, answer=9, priority=priority))
    assert step(scheduler) == [("high", 0, 6), ("a", 0, 2)]
    scheduler.add(request("higher", 6, answer=9, priority=6))
    assert step(scheduler) == [("high", 6, 7), ("higher", 0, 6)]
    assert scheduler.preemptions == 1


def test_the_least_served_tenant_is_read_first() -> None:
    scheduler = make(blocks=64, budget=10)
    scheduler.add(request("a", 30, tenant="a"))
    scheduler.add(request("b", 30, tenant="b"))
    assert [step(scheduler)[0][0] for _ in range(5)] == ["a", "b", "a", "b", "a"]


def test_the_queue_is_shared() -> None:
    scheduler = make()
    assert scheduler.share_of_queue("a", 10) == 10
    for i in range(10):
        scheduler.add(request(f"a{i}", 4, tenant="a"))
    assert scheduler.share_of_queue("a", 10) == 0
    assert scheduler.share_of_queue("b", 10) == 5
    scheduler.add(request("b", 4, tenant="b"))
    assert (scheduler.share_of_queue("a", 10), scheduler.share_of_queue("b", 10)) == (-5, 4)


def alike(name: str, tail: int, answer: int = 4, **fields: Any) -> Request:
    """A request whose first twelve tokens, three blocks, are those of every other one."""
    tokens = [1] * 12 + [2] * tail
    return Request(name, tokens, len(tokens), len(tokens) + answer, names=BlockNames(b"root", BLOCK), **fields)


def test_requests_that_begin_alike_wait_for_the_first() -> None:
    scheduler = make(blocks=64, budget=8, most_kept=64)
    for name in "abc":
        scheduler.add(alike(name, 2))
    scheduler.add(request("other", 3))
    assert step(scheduler) == [("a", 0, 8)]
    assert step(scheduler) == [("a", 8, 14), ("other", 0, 2)]
    assert step(scheduler) == [("a", 14, 15), ("other", 2, 3), ("b", 12, 14), ("c", 12, 14)]
    scheduler.check_integrity()


def test_a_promise_ends_with_the_request() -> None:
    scheduler = make(blocks=64, budget=8, most_kept=64)
    first, second = alike("a", 2), alike("b", 2)
    scheduler.add(first)
    scheduler.add(second)
    assert step(scheduler) == [("a", 0, 8)]
    scheduler.remove(first)
    assert step(scheduler) == [("b", 8, 14)]  # the two blocks that were filled are there


def test_nobody_waits_for_a_promise_of_lower_priority() -> None:
    scheduler = make(blocks=64, budget=8, most_kept=64)
    scheduler.add(alike("low", 20))
    assert step(scheduler) == [("low", 0, 8)]
    scheduler.add(alike("high", 2, priority=1))
    assert step(scheduler) == [("high", 8, 14), ("low", 8, 10)]


def test_hits_are_counted_once() -> None:
    scheduler = make(blocks=64, budget=64, most_kept=64)
    for name in "ab":
        scheduler.add(alike(name, 2, answer=1))
        step(scheduler)
    assert (scheduler.query_tokens, scheduler.hit_tokens) == (28, 12)


class EngineLife(RuleBasedStateMachine):
    """Requests come, are stepped, leave early, in any order; the books stay right and everyone is served."""

    CONTEXT = 24

    def __init__(self) -> None:
        super().__init__()
        self.cache = KVCache(num_blocks=self.CONTEXT // BLOCK + 3, block_size=BLOCK, most_kept=4)
        self.budget = 6
        self.scheduler = Scheduler(self.cache, batch_tokens=self.budget, max_requests=4, clock=Unbounded())
        self.live: list[Request] = []
        self.count = 0

    @rule(
        prompt=st.integers(1, CONTEXT - 1),
        answer=st.integers(1, CONTEXT),
        tenant=st.sampled_from("abc"),
        priority=st.integers(0, 2),
    )
    def add(self, prompt: int, answer: int, tenant: str, priority: int) -> None:
        length = min(self.CONTEXT, prompt + answer)
        names = BlockNames(tenant.encode(), BLOCK, prompt)
        self.live.append(
            Request(f"r{self.count}", [0] * prompt, prompt, length, tenant=tenant, priority=priority, names=names)
        )
        self.scheduler.add(self.live[-1])
        self.count += 1

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.scheduler.remove(self.live.pop(data.draw(st.integers(0, len(self.live) - 1))))

    @rule(times=st.integers(1, 8))
    def steps(self, times: int) -> None:
        for _ in range(times):
            self.one_step()

    @rule(blocks=st.integers(1, 2))
    def borrow(self, blocks: int) -> None:
        """Scoring takes blocks beside the requests, for the time between two steps."""
        self.cache.grow("borrowed", blocks * BLOCK)
        self.cache.release("borrowed")

    def one_step(self) -> None:
        plan = self.scheduler.schedule()
        assert bool(plan) == bool(self.live), "work is left and nobody is served"
        assert sum(work.stop - work.start for work in plan) <= self.budget
        assert len({work.request.id for work in plan}) == len(plan)
        writing = {r.id for r in self.scheduler._running if r.num_pending == 1}
        assert writing <= {work.request.id for work in plan}, "an answer is kept waiting"
        for work in plan:
            self.check_work(work)
            completes = bool(work.num_choices)
            work.request.tokens += [1] * completes
            self.scheduler.commit(work)
            if completes and len(work.request.tokens) == work.request.max_length:
                self.scheduler.remove(work.request)
                self.live.remove(work.request)

    def check_work(self, work: Work) -> None:
        assert work.start == work.request.num_computed < work.stop <= len(work.request.tokens)
        assert len(work.blocks) * BLOCK >= work.stop

    @invariant()
    def books_are_right(self) -> None:
        self.scheduler.check_integrity()
        assert self.scheduler.num_running + self.scheduler.num_waiting == len(self.live)

    def teardown(self) -> None:
        for _ in range(2000):
            if not self.live:
                break
            self.one_step()
        assert not self.live, "a request does not end"
        assert self.cache.num_free == self.cache.num_blocks


EngineLife.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestEngineLife = EngineLife.TestCase
