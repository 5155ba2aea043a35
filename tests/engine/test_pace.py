"""Prompts beside answers: on machines of any speed, answers take less than twice as long as without prompts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finback.engine.pace import LEAST_CHUNK, Pace


def played(pace: Pace, cost: Callable[[int, int], float], answers: int, steps: int) -> tuple[float, int]:
    """Run steps on a machine where a step takes ``cost(answers, prompt)``: mean seconds, and prompt tokens read."""
    total, read = 0.0, 0
    for _ in range(steps):
        prompt = pace.allowance(answers, 1)
        pace.note(answers, prompt, cost(answers, prompt))
        total, read = total + cost(answers, prompt), read + prompt
    return total / steps, read


def test_the_first_step_of_a_size_is_timed_without_prompts() -> None:
    pace = Pace()
    assert pace.allowance(8, 1) == 0
    pace.note(8, 0, 0.02)
    assert (pace.allowance(8, 1), pace.allowance(9, 1)) == (LEAST_CHUNK, 0)
    pace.note(40, 0, 0.02)
    assert (pace.allowance(33, 1), pace.allowance(64, 1), pace.allowance(65, 1)) == (LEAST_CHUNK, LEAST_CHUNK, 0)


def test_the_time_of_a_step_is_guessed_from_smaller_and_larger_ones() -> None:
    pace = Pace()
    assert pace.seconds(2) > pace.seconds(1) > 0
    pace.note(1, 0, 0.01)
    pace.note(4, 0, 0.02)
    assert pace.seconds(1) == pytest.approx(0.01)
    assert 0.01 < pace.seconds(2) < pace.seconds(3) < pace.seconds(4) == pytest.approx(0.02)
    assert pace.seconds(5) > pace.seconds(4)
    pace.note(30, 0, 0.3)
    assert pace.seconds(17) == pytest.approx(0.16)  # half way between 4 and 30


def test_what_a_few_rows_more_do_not_cost_is_not_charged_to_many_more() -> None:
    """Else rows beyond those few are never tried where most of a step's time is the same for any number."""
    pace = Pace()
    for tokens in (60, 64, 65, 66):
        pace.note(tokens, 0, 0.05)
    assert pace.seconds(66) == pytest.approx(0.05, rel=0.01)
    assert pace.seconds(128) < 0.07


def test_prompts_are_not_taken_to_cost_nothing_after_a_slow_first_step() -> None:
    pace = Pace()
    pace.note(1, 0, 0.04)
    pace.note(1, LEAST_CHUNK, 0.03)
    assert pace.allowance(1, 1) <= 2 * LEAST_CHUNK


def test_steps_without_answers_teach_nothing() -> None:
    pace = Pace()
    pace.note(0, 512, 1.0)
    assert pace.allowance(1, 1) == 0


@given(
    fixed=st.floats(0, 0.2),
    per_answer=st.floats(0.0005, 0.5),
    per_prompt=st.floats(0.00005, 0.05),
    per_chunk=st.floats(0, 0.05),
    answers=st.integers(1, 64),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_answers_take_less_than_twice_as_long(
    fixed: float, per_answer: float, per_prompt: float, per_chunk: float, answers: int
) -> None:
    def cost(answers: int, prompt: int) -> float:
        return fixed + per_answer * answers + per_prompt * prompt + (per_chunk if prompt else 0.0)

    alone = cost(answers, 0)
    pace = Pace()
    played(pace, cost, answers, 50)
    mean, read = played(pace, cost, answers, 500)
    assert read > 0
    # The least chunk is computed now and then, however dear it is.
    dear = cost(answers, LEAST_CHUNK) > 5 * alone
    assert mean < (2.0 * alone if not dear else cost(answers, LEAST_CHUNK))
    assert (mean - alone) / alone > 0.3


def test_it_follows_a_machine_that_becomes_slower() -> None:
    pace = Pace()
    played(pace, lambda answers, prompt: 0.02 + 0.001 * prompt, 8, 100)
    mean, _ = played(pace, lambda answers, prompt: 0.06 + 0.003 * prompt, 8, 400)
    assert mean < 2 * 0.06


def test_one_slow_step_does_not_stop_prompts_for_long() -> None:
    pace = Pace()
    played(pace, lambda answers, prompt: 0.02 + 0.001 * prompt, 8, 100)
    pace.note(8, 16, 90.0)
    _, read = played(pace, lambda answers, prompt: 0.02 + 0.001 * prompt, 8, 100)
    assert read > 100 * 16 * 0.2


@pytest.mark.parametrize("answers", [1, 8])
def test_a_least_chunk_that_is_too_dear_is_paid_back(answers: int) -> None:
    pace = Pace(least_chunk=128)

    def cost(answers: int, prompt: int) -> float:
        return 0.1 * answers + (0.4 * answers if prompt else 0)

    played(pace, cost, answers, 20)
    mean, read = played(pace, cost, answers, 200)
    assert mean < 2 * 0.1 * answers
    assert read >= 20 * 128


def test_many_prompts_claim_more_than_one() -> None:
    pace = Pace()
    played(pace, lambda answers, prompt: 0.02 + 0.001 * prompt, 8, 100)
    while not pace.allowance(8, 1):
        pace.note(8, 0, 0.02)
    assert pace.allowance(8, 1) == pace.allowance(8, 4) == LEAST_CHUNK
    assert pace.allowance(8, 24) == pytest.approx(60, abs=3)


def test_what_prompts_leave_behind_counts_as_theirs() -> None:
    """The step after one with prompt tokens is slower, because the caches have to be filled again."""
    pace, disturbed, total = Pace(), False, 0.0
    for step in range(600):
        prompt = pace.allowance(8, 1) if step > 10 else 0
        seconds = 0.02 + (0.02 if prompt else 0.0) + (0.008 if disturbed else 0.0)
        pace.note(8, prompt, seconds)
        total, disturbed = total + seconds, prompt > 0
    assert total / 600 < 0.02 * 1.7
