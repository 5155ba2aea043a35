"""Add, abort, step: what each request is told, how it ends, and that failures stay where they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finback.engine.engine import Engine
from finback.engine.request import SamplingParams, StepOutput, Usage
from finback.errors import EngineError, InvalidRequest, PromptTooLong, QueueFull
from tests.conftest import BOS, EOS, TinyModel
from tests.engine.collect import Finished, finish

PROMPT = [1, 2, 3]


def answer(engine: Engine, prompt: list[int] = PROMPT, **params: Any) -> Finished:
    engine.add("only", prompt, SamplingParams(**params))
    return finish(engine)["only"]


@pytest.fixture
def says(make_engine):
    """An engine whose model says a text, then EOS."""
    return lambda text, **settings: make_engine(TinyModel(script=text), **settings)


def test_an_answer_ends_at_eos(says) -> None:
    result = answer(says("héllo €"), temperature=0)
    assert (result.text, result.finish_reason) == ("héllo €", "stop")
    assert result.tokens == [*"héllo €".encode(), EOS]
    assert result.usage == Usage(prompt_tokens=3, completion_tokens=11)


def test_max_tokens(says) -> None:
    result = answer(says("hello"), temperature=0, max_tokens=3)
    assert (result.text, result.finish_reason, result.usage) == ("hel", "length", Usage(3, 3))


def test_the_end_of_the_context(says) -> None:
    engine = says("x" * 100, context=20)
    result = answer(engine, temperature=0)
    assert (result.finish_reason, result.usage) == ("length", Usage(3, 17))
    assert answer(engine, [1] * 19, temperature=0, max_tokens=50).usage == Usage(19, 1)


def test_eos_can_be_ignored(says) -> None:
    result = answer(says("ab"), temperature=0, ignore_eos=True, max_tokens=4)
    assert result.tokens == [97, 98, EOS, EOS]
    assert result.finish_reason == "length"
    assert result.text == "ab<eos><eos>"


def test_stop_tokens_end_without_text(says) -> None:
    result = answer(says("hello"), temperature=0, stop_token_ids=(ord("l"),))
    assert (result.text, result.tokens, result.finish_reason) == ("he", [*b"hel"], "stop")


def test_stop_strings_end_before_their_text(says) -> None:
    result = answer(says("one, two, three"), temperature=0, stop=(", t", "three"))
    assert (result.text, result.finish_reason) == ("one", "stop")
    assert result.tokens == [*b"one, t"]


def test_held_text_comes_with_the_end(says) -> None:
    assert answer(says("a sto"), temperature=0, stop=("stop",)).text == "a sto"
    assert answer(says("a stop"), temperature=0, stop=("stop",), max_tokens=5).text == "a sto"


def test_an_incomplete_character_at_the_end(says) -> None:
    assert answer(says("a€"), temperature=0, max_tokens=3).text == "a\ufffd"


def test_a_stop_string_can_be_complete_with_the_very_end(says) -> None:
    result = answer(says("a€"), temperature=0, max_tokens=2, stop=("\ufffd",))
    assert (result.text, result.finish_reason) == ("a", "stop")


def test_text_and_tokens_come_step_by_step(says) -> None:
    engine = says("é!")
    engine.add("a", PROMPT, SamplingParams(temperature=0))
    outputs = [output for _ in range(4) for output in engine.step()]
    assert [(o.tokens, o.text, o.finish_reason) for o in outputs] == [
        ((0xC3,), "", None), ((0xA9,), "é", None), ((0x21,), "!", None), ((EOS,), "", "stop"),
    ]  # fmt: skip
    assert [o.usage for o in outputs] == [None, None, None, Usage(3, 4)]
    assert engine.step() == []


def test_logprobs_match_the_models_logits(make_engine) -> None:
    engine = make_engine()
    result = answer(engine, logprobs=3, max_tokens=5, seed=1)
    logits = engine.logits(PROMPT + result.tokens[:-1], prompt=3)[2:].astype(np.float64)
    exact = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert [entry.token for entry in result.logprobs] == result.tokens
    for row, entry in zip(exact, result.logprobs, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token], abs=1e-4)
        assert [token for token, _ in entry.top] == np.argsort(-row, kind="stable")[:3].tolist()
        assert [value for _, value in entry.top] == pytest.approx(sorted(row)[::-1][:3], abs=1e-4)


def test_many_requests_share_steps(make_engine) -> None:
    model = TinyModel()
    engine = make_engine(model, draft_tokens=0)  # how many guesses pay depends on the clock
    for i in range(10):
        engine.add(f"r{i}", [BOS, i, i + 1], SamplingParams(max_tokens=6, ignore_eos=True))
    results = finish(engine)
    assert len(results) == 10
    assert all(result.usage == Usage(3, 6) for result in results.values())
    assert len(model.batches) == 6  # the prompts in one step, then a token of each in each step
    assert [batch.rows for batch in model.batches] == [30, *[10] * 5]


def test_only_rows_that_choose_a_token_get_logits(make_engine) -> None:
    model = TinyModel()
    answer(make_engine(model, batch_tokens=4), [1] * 10, max_tokens=2)
    assert [len(batch.logit_rows) for batch in model.batches] == [0, 0, 1, 1]


def test_a_full_queue_refuses(make_engine) -> None:
    engine = make_engine(max_requests=1, max_queue=3)
    for i in range(3):
        engine.add(f"r{i}", PROMPT, SamplingParams(max_tokens=2), tenant="many")
    with pytest.raises(QueueFull, match="3 requests wait") as caught:
        engine.add("r3", PROMPT, SamplingParams(), tenant="many")
    assert 1 <= caught.value.retry_after_s <= 60
    engine.add("other", PROMPT, SamplingParams(max_tokens=2), tenant="few")
    engine.step()
    with pytest.raises(QueueFull):
        engine.add("r3", PROMPT, SamplingParams(), tenant="many")
    assert sorted(finish(engine)) == ["other", "r0", "r1", "r2"]
    for i in range(3):
        engine.add(f"r{i}", PROMPT, SamplingParams(max_tokens=2))
    with pytest.raises(QueueFull) as caught:
        engine.add("r3", PROMPT, SamplingParams())
    assert caught.value.retry_after_s == 1  # four have ended in the last second


def test_bad_priorities_are_refused(make_engine) -> None:
    for priority in (1.5, 1001, "1", True):
        with pytest.raises(InvalidRequest, match="priority"):
            make_engine().add("a", PROMPT, SamplingParams(), priority=priority)


def test_abort_tells_once_and_frees(make_engine) -> None:
    engine = make_engine()
    engine.add("a", PROMPT, SamplingParams())
    engine.add("b", PROMPT, SamplingParams(max_tokens=3))
    engine.step()
    engine.abort("a")
    engine.abort("a")
    engine.abort("nobody")
    results = finish(engine)
    assert (results["a"].finish_reason, results["a"].usage) == ("abort", Usage(3, 1))
    assert results["b"].usage == Usage(3, 3)
    assert not engine.has_work


def test_abort_while_waiting(make_engine) -> None:
    engine = make_engine(max_requests=1)
    engine.add("a", PROMPT, SamplingParams(max_tokens=2))
    engine.add("b", PROMPT, SamplingParams())
    engine.step()
    assert (engine.num_running, engine.num_waiting) == (1, 1)
    engine.abort("b")
    assert finish(engine)["b"].usage == Usage(3, 0)


def test_aborted_text_is_told(says) -> None:
    engine = says("stop")
    engine.add("a", PROMPT, SamplingParams(temperature=0, stop=("stopping",)))
    engine.step()
    engine.step()
    engine.abort("a")
    assert engine.step() == [StepOutput("a", text="st", finish_reason="abort", usage=Usage(3, 2))]


def test_an_id_can_be_used_again_after_its_end(make_engine) -> None:
    engine = make_engine()
    engine.add("a", PROMPT, SamplingParams(max_tokens=1))
    with pytest.raises(InvalidRequest, match="taken"):
        engine.add("a", PROMPT, SamplingParams())
    finish(engine)
    engine.add("a", PROMPT, SamplingParams(max_tokens=1))
    assert finish(engine)["a"].finish_reason == "length"


def test_nan_logits_end_their_request_only(make_engine) -> None:
    engine = make_engine(TinyModel(poison=99))
    engine.add("bad", [1, 99], SamplingParams())
    engine.add("good", [1, 2], SamplingParams(max_tokens=5, logit_bias={99: -100}))
    results = finish(engine)
    assert results["bad"].finish_reason == "error"
    assert isinstance(results["bad"].error, EngineError)
    assert "NaN" in results["bad"].error.message
    assert results["good"].usage == Usage(2, 5)
    assert answer(engine, max_tokens=2, logit_bias={99: -100}).finish_reason == "length"


class FailingModel(TinyModel):
    """Fails whenever a token is in the batch."""

    def forward(self, batch, cache):
        if 66 in batch.tokens:
            raise RuntimeError("boom")
        return super().forward(batch, cache)


def test_a_failing_step_ends_its_requests_and_the_engine_goes_on(make_engine) -> None:
    engine = make_engine(FailingModel())
    engine.add("a", [1, 66], SamplingParams())
    results = finish(engine)
    assert results["a"].finish_reason == "error"
    assert "boom" in str(results["a"].error)
    assert isinstance(results["a"].error.__cause__, RuntimeError)
    assert answer(engine, max_tokens=2, logit_bias={66: -100}).finish_reason == "length"


class InterruptedModel(TinyModel):
    """Is interrupted at its third step, once."""

    def forward(self, batch, cache):
        logits = super().forward(batch, cache)
        if len(self.batches) == 3:
            raise KeyboardInterrupt
        return logits


def test_an_interrupted_step_can_be_taken_again(make_engine) -> None:
    expected = answer(make_engine(), seed=3, max_tokens=6)
    engine = make_engine(InterruptedModel())
    engine.add("a", PROMPT, SamplingParams(seed=3, max_tokens=6))
    tokens = [*engine.step()[0].tokens, *engine.step()[0].tokens]
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.check_integrity()
    assert tokens + finish(engine)["a"].tokens == expected.tokens


def test_preempted_requests_give_the_same_answers(make_engine) -> None:
    def run(**engine_options: Any) -> tuple[list[list[int]], int]:
        engine = make_engine(**engine_options)
        for i in range(4):
            engine.add(f"r{i}", [BOS, i] * 30, SamplingParams(seed=i, max_tokens=150))
        results = finish(engine)
        return [results[f"r{i}"].tokens for i in range(4)], engine._scheduler.preemptions

    roomy, none = run(blocks=64)
    tight, several = run(blocks=6, context=256)
    tight_chunks, also = run(blocks=6, context=256, batch_tokens=13)
    assert (none, several > 0, also > 0) == (0, True, True)
    assert tight == roomy == tight_chunks


def test_logits_in_chunks_beside_running_requests(make_engine) -> None:
    engine = make_engine()
    tokens = list(range(100))
    expected = engine.logits(tokens)
    assert expected.shape == (100, 258)
    assert expected.dtype == np.float32
    engine.add("a", PROMPT, SamplingParams(max_tokens=5))
    engine.step()
    assert np.array_equal(engine.logits(tokens, chunk=7), expected)
    engine.check_integrity()
    assert finish(engine)["a"].usage == Usage(3, 5)


def test_logits_in_the_generated_role(make_engine) -> None:
    model = TinyModel()
    engine = make_engine(model)
    tokens = list(range(10))
    assert np.array_equal(engine.logits(tokens)[:4], engine.logits(tokens, prompt=4)[:4])
    assert not np.array_equal(engine.logits(tokens)[4:], engine.logits(tokens, prompt=4)[4:])
    model.batches.clear()
    engine.logits(tokens, prompt=4, chunk=3)
    assert [batch.rows for batch in model.batches] == [3, 1, *[1] * 6]
    assert [batch.segments[0].prompt for batch in model.batches] == [True, True, *[False] * 6]


def test_logits_leave_no_blocks_behind_when_they_fail(make_engine) -> None:
    engine = make_engine(FailingModel(), blocks=2, context=128)
    with pytest.raises(RuntimeError):
        engine.logits([1, 66])
    assert engine.logits([1] * 128).shape == (128, 258)


def test_logits_without_room(make_engine) -> None:
    engine = make_engine(blocks=2, context=100)
    engine.add("a", [1] * 70, SamplingParams(max_tokens=1))
    engine.add("b", [1] * 10, SamplingParams(max_tokens=9))
    engine._scheduler.schedule()
    with pytest.raises(EngineError, match="no room"):
        engine.logits([1] * 50)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "empty"),
        ([258], r"258 at index 0.*0 to 257"),
        ([1, 2, -1], "-1 at index 2"),
        ([1.5], "whole numbers"),
        (["a"], "whole numbers"),
        ("text", "whole numbers"),
        ([[1], [2]], "whole numbers"),
        ([[1], [2, 3]], "whole numbers"),
        ([True], "whole numbers"),
        ([2**70], "whole numbers"),
        (None, "whole numbers"),
    ],
)
def test_bad_prompts_are_refused(make_engine, prompt: Any, message: str) -> None:
    engine = make_engine()
    for ask in (lambda: engine.add("a", prompt, SamplingParams()), lambda: engine.logits(prompt)):
        with pytest.raises(InvalidRequest, match=message) as caught:
            ask()
        assert caught.value.parameter == "prompt"
    assert not engine.has_work


def test_arrays_are_prompts(make_engine) -> None:
    assert answer(make_engine(), np.array([1, 2], np.int32), max_tokens=1).usage == Usage(2, 1)


def test_prompts_that_are_too_long_are_refused_with_counts(make_engine) -> None:
    engine = make_engine(context=50)
    with pytest.raises(PromptTooLong, match="has 50 tokens; at most 49 fit in the context of 50"):
        engine.add("a", [1] * 50, SamplingParams())
    with pytest.raises(PromptTooLong, match="has 51 tokens; at most 50"):
        engine.logits([1] * 51)
    assert engine.logits([1] * 50).shape == (50, 258)


def test_ids_outside_the_vocabulary_are_refused(make_engine) -> None:
    engine = make_engine()
    for params, name in ((SamplingParams(logit_bias={258: 1}), "logit_bias"),
                         (SamplingParams(stop_token_ids=(9999,)), "stop_token_ids")):  # fmt: skip
        with pytest.raises(InvalidRequest, match=name):
            engine.add("a", PROMPT, params)


@pytest.mark.parametrize("options", [{"chunk": 0}, {"chunk": -1}, {"prompt": -1}, {"prompt": 4}, {"prompt": 1.0}])
def test_bad_scoring_options_are_refused(make_engine, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(options))):
        make_engine().logits(PROMPT, **options)


def test_resolved_settings_can_be_read(make_engine) -> None:
    engine = make_engine(batch_tokens=9)
    assert (engine.settings.context, engine.settings.kv_dtype, engine.settings.batch_tokens) == (512, "f32", 9)
    assert engine.context == 512


def test_a_closed_engine_says_so(make_engine) -> None:
    engine = make_engine()
    engine.add("a", PROMPT, SamplingParams())
    engine.step()
    engine.close()
    engine.close()
    engine.check_integrity()
    for ask in (engine.step, lambda: engine.add("b", PROMPT, SamplingParams()), lambda: engine.logits(PROMPT)):
        with pytest.raises(EngineError, match="closed"):
            ask()
