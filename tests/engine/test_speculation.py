"""Guessing ahead: what is guessed, when it pays, and that it never changes a token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finback.engine.engine import Engine
from finback.engine.request import SamplingParams
from finback.engine.speculation import FIRST_CHANCE, MATCH, Drafter, worth_drafting
from finback.errors import EngineError
from tests.conftest import EOS, TinyModel
from tests.engine.collect import Finished, finish

MakeEngine = Callable[..., Any]


def test_a_guess_is_what_followed_before() -> None:
    assert list(Drafter().guess([1, 2, 3, 4, 5, 6, 1, 2, 3], 2)) == [4, 5]
    assert list(Drafter().guess([1, 2, 3, 4, 1, 2, 3], 8)) == [4, 1, 2, 3, 4, 1, 2, 3]
    assert list(Drafter().guess([7] * 10, 4)) == [7] * 4
    assert list(Drafter().guess([1, 2, 3, 4, 5], 8)) == []
    assert list(Drafter().guess([1, 2], 8)) == []


def test_the_latest_place_counts() -> None:
    assert list(Drafter().guess([1, 2, 3, 4, 0, 1, 2, 3, 5, 0, 1, 2, 3], 1)) == [5]


@given(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=60), cut=st.integers(1, 60), most=st.integers(1, 9))
@settings(deadline=None, derandomize=True)
def test_growing_changes_no_guess(tokens: list[int], cut: int, most: int) -> None:
    drafter = Drafter()
    drafter.guess(tokens[:cut], most)
    guess = list(drafter.guess(tokens, most))
    assert guess == list(Drafter().guess(tokens, most))
    places = [at for at in range(MATCH, len(tokens)) if tokens[at - MATCH : at] == tokens[-MATCH:]]
    assert guess == ((tokens[places[-1] :] * most)[:most] if places else [])


def test_guesses_are_judged_by_what_follows_even_when_none_is_computed() -> None:
    drafter = Drafter()
    tokens = [1, 2, 3, 4, 5] * 3
    for _ in range(20):
        drafter.guess(tokens, 3)
        tokens.append(tokens[-5])
    assert drafter.chance > 0.9
    for i in range(30):
        drafter.guess(tokens, 3)
        tokens += [1, 2, 3, 100 + i]
        drafter.guess(tokens[:-1], 3)
    assert drafter.chance < 0.3


def test_only_what_was_compared_is_judged() -> None:
    drafter = Drafter()
    drafter.guess([1, 2, 3, 4, 5, 1, 2, 3], 2)
    drafter.guess([1, 2, 3, 4, 5, 1, 2, 3, 9], 2)
    once = drafter.chance
    assert once < FIRST_CHANCE
    drafter.guess([1, 2, 3, 4, 5, 1, 2, 3, 9, 8], 2)  # nothing was guessed
    assert drafter.chance == once


def test_drafts_are_computed_while_they_pay() -> None:
    def dear(rows: int) -> float:
        return 1.0 * rows

    def cheap(rows: int) -> float:
        return 1.0 + 0.05 * rows

    assert worth_drafting(0.99, 8, 1, 1, dear) == 0
    assert worth_drafting(0.99, 8, 1, 1, cheap) == 8
    assert worth_drafting(0.5, 8, 1, 1, cheap) == 4  # 0.05 of a second for a token that comes one time in 16
    assert worth_drafting(0.02, 8, 1, 1, cheap) == 0
    assert worth_drafting(0.99, 0, 1, 1, cheap) == 0
    # A token is worth less where many share a step.
    assert worth_drafting(0.5, 8, 32, 32, cheap) < 4


def answer(engine: Engine, prompt: list[int], **params: Any) -> Finished:
    engine.add("it", prompt, SamplingParams(**params))
    return finish(engine)["it"]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every guess is computed, whatever it costs."""
    monkeypatch.setattr("finback.engine.scheduler.worth_drafting", lambda chance, most, *_: most)


SONG = "ten green bottles, nine green bottles, ten green bottles, nine green bottles"


@pytest.mark.usefixtures("eager")
def test_a_repeating_answer_takes_fewer_steps(make_engine: MakeEngine) -> None:
    model = TinyModel(script=SONG)
    engine = make_engine(model)
    result = answer(engine, [1, 2, 3], temperature=0)
    assert (result.text, result.finish_reason) == (SONG, "stop")
    assert result.usage.completion_tokens == len(SONG) + 1
    stats = engine.stats()
    assert stats.steps < 0.75 * len(SONG)
    assert stats.output_tokens == len(SONG) + 1 == stats.steps + stats.draft_tokens_kept
    assert [b.segments[-1].prompt for b in model.batches] == [True] + [False] * (stats.steps - 1)


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "warm": {"temperature": 0.7, "seed": 3},
    "penalties": {
        "temperature": 0.5, "seed": 4, "frequency_penalty": 0.4, "presence_penalty": -0.2, "repetition_penalty": 1.1,
    },
    "bias and bounds": {"temperature": 2.0, "seed": 5, "logit_bias": {7: 8.0, 9: 8.0}, "top_p": 0.9, "top_k": 40},
    "logprobs": {"temperature": 0.3, "seed": 6, "logprobs": 2},
    "stops": {"temperature": 0.0, "stop_token_ids": (50, 60, 70, 80, 90)},
}  # fmt: skip


class Prompter(Drafter):
    """Knows the answer, and says every fifth token wrong."""

    def __init__(self, whole: list[int]) -> None:
        super().__init__()
        self._whole = whole

    def guess(self, tokens: Sequence[int], most: int) -> Sequence[int]:
        at = len(tokens)
        return [token if (at + i) % 5 else 3 for i, token in enumerate(self._whole[at : at + most])]


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", SETTINGS)
def test_guessing_changes_no_token(make_engine: MakeEngine, name: str) -> None:
    prompt = [5, 6, 7, 8, 5, 6]
    params = {"max_tokens": 100, "ignore_eos": True, **SETTINGS[name]}
    plain = answer(make_engine(draft_tokens=0), prompt, **params)
    engine = make_engine()
    engine.add("it", prompt, SamplingParams(**params))
    engine._running["it"].request.drafter = Prompter(prompt + plain.tokens)
    assert finish(engine)["it"] == plain
    stats = engine.stats()
    assert 0.5 * len(plain.tokens) < stats.draft_tokens_kept < stats.draft_tokens


@pytest.mark.usefixtures("eager")
def test_an_answer_ends_where_it_would_without_guesses(make_engine: MakeEngine) -> None:
    for params in ({"max_tokens": 33}, {"stop": ("nine green",)}, {"stop_token_ids": (ord(","),)}, {"stop": ("n, t",)}):
        guessed, plain = (
            answer(make_engine(TinyModel(script=SONG), draft_tokens=n), [1, 2, 3], temperature=0, **params)
            for n in (8, 0)
        )
        assert guessed == plain
    guessed, plain = (
        answer(make_engine(TinyModel(script=SONG), context=40, draft_tokens=n), [1, 2, 3], temperature=0)
        for n in (8, 0)
    )
    assert guessed == plain
    assert guessed.finish_reason == "length"


@pytest.mark.usefixtures("eager")
def test_eos_among_the_guesses_ends(make_engine: MakeEngine) -> None:
    text = "abcdef"
    prompt = [*b"abcdef", EOS, *b"abcdef", EOS, 1, 2]
    result = answer(make_engine(TinyModel(script=text)), prompt, temperature=0)
    assert (result.text, result.tokens[-1]) == (text, EOS)


@pytest.mark.usefixtures("eager")
def test_tokens_chosen_before_a_failure_are_told(make_engine: MakeEngine) -> None:
    engine = make_engine(TinyModel(script="abcabcabcabcabcabc", poison=ord("c")), draft_tokens=0)
    plain = answer(engine, [1], temperature=0)
    guessed = answer(make_engine(TinyModel(script="abcabcabcabcabcabc", poison=ord("c"))), [1], temperature=0)
    assert isinstance(guessed.error, EngineError)
    assert (guessed.tokens, guessed.usage) == (plain.tokens, plain.usage)


@pytest.mark.usefixtures("eager")
def test_guesses_change_no_token_in_company_when_blocks_are_short(make_engine: MakeEngine) -> None:
    def run(**options: Any) -> list[list[int]]:
        engine = make_engine(**options)
        for i in range(6):
            params = SamplingParams(seed=i, max_tokens=120, temperature=0.3, ignore_eos=True)
            engine.add(f"r{i}", [5, 6, 7, i] * 10, params, tenant=f"t{i % 2}", priority=i % 3)
        results = finish(engine)
        return [results[f"r{i}"].tokens for i in range(6)]

    plain = run(draft_tokens=0, prefix_cache_mib=0)
    assert run() == plain
    assert run(blocks=6, context=256) == plain
    assert run(blocks=6, context=256, batch_tokens=13) == plain
