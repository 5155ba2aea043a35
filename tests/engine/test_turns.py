"""Threads that share an engine: everyone gets their own outputs, nobody waits for a reader that pauses."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from finback.engine.request import SamplingParams
from finback.engine.turns import Turns
from finback.errors import EngineError, InvalidRequest
from tests.conftest import TinyModel


def tokens_of(turns: Turns, seed: int, count: int = 20) -> list[int]:
    params = SamplingParams(seed=seed, max_tokens=count)
    return [token for output in turns.start([1, 2, seed], params) for token in output.tokens]


def test_threads_get_what_they_get_alone(make_engine) -> None:
    alone = [tokens_of(Turns(make_engine()), seed) for seed in range(8)]
    model = TinyModel()
    turns = Turns(make_engine(model))
    together = threading.Barrier(8)

    def ask(seed: int) -> list[int]:
        together.wait()
        return tokens_of(turns, seed)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == alone
    turns._engine.check_integrity()
    assert not turns._boxes


def test_a_paused_reader_stops_nobody(make_engine) -> None:
    turns = Turns(make_engine())
    paused = turns.start([1, 2, 3], SamplingParams(seed=3, max_tokens=20))
    first = next(paused).tokens
    assert tokens_of(turns, 5) == tokens_of(Turns(make_engine()), 5)
    rest = [token for output in paused for token in output.tokens]
    assert [*first, *rest] == tokens_of(Turns(make_engine()), 3)


def test_a_reader_that_leaves_ends_its_request(make_engine) -> None:
    engine = make_engine()
    turns = Turns(engine)
    outputs = turns.start([1], SamplingParams())
    next(outputs)
    assert engine.num_running == 1
    outputs.close()
    assert engine.num_running == 0
    assert not turns._boxes
    engine.check_integrity()


def test_a_dropped_reader_ends_its_request(make_engine) -> None:
    engine = make_engine()
    turns = Turns(engine)
    outputs = turns.start([1], SamplingParams())
    next(outputs)
    del outputs
    gc.collect()
    assert engine.num_running == 0


def test_a_reader_dropped_while_the_lock_is_held_is_swept_later(make_engine) -> None:
    engine = make_engine()
    turns = Turns(engine)
    outputs = turns.start([1], SamplingParams())
    next(outputs)
    with turns._lock:
        outputs.close()  # as the garbage collector might, in the middle of a step
        assert engine.num_running == 1
    tokens_of(turns, 1)
    assert engine.num_running == 0


def test_requests_run_from_the_first_next(make_engine) -> None:
    engine = make_engine()
    outputs = Turns(engine).start([1], SamplingParams())
    assert not engine.has_work
    outputs.close()
    assert not engine.has_work


def test_bad_requests_are_refused_at_the_call(make_engine) -> None:
    with pytest.raises(InvalidRequest):
        Turns(make_engine()).start([], SamplingParams())


def test_errors_of_a_request_are_raised_to_its_reader_only(make_engine) -> None:
    turns = Turns(make_engine(TinyModel(poison=66)))
    safe = turns.start([1], SamplingParams(max_tokens=3, logit_bias={66: -100}))
    next(safe)
    with pytest.raises(EngineError, match="NaN"):
        list(turns.start([66], SamplingParams()))
    assert len(list(safe)) == 2


def test_closing_ends_readers_with_an_error(make_engine) -> None:
    turns = Turns(make_engine())
    outputs = turns.start([1], SamplingParams())
    next(outputs)
    turns.close()
    with pytest.raises(EngineError, match="closed"):
        next(outputs)
    with pytest.raises(EngineError, match="closed"):
        turns.start([1], SamplingParams())
    with pytest.raises(EngineError, match="closed"):
        turns.logits([1], chunk=None, prompt=None)
