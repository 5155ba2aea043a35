"""Rule R1: a row's logits are the same bits alone, among others, in any chunks, and on any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from finback import kernels
from finback.models import Model
from tests.models.files import load, write_folder
from tests.models.steps import Piece, Steps, decode_after, in_chunks, run
from tests.vectors.models.tiny import TINY, prompt_tokens

NAMES = ("llama", "qwen3", "v2_odd", "v3", "v3_fp8")
DTYPES = (np.float32, np.float16, np.uint16)  # uint16: the bits of bfloat16
TOKENS = 40


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp(request.param)
    return load(write_folder(folder / "model", TINY[request.param]), folder / "cache")


@pytest.fixture
def threads() -> Iterator[None]:
    before = kernels.threads()
    yield
    kernels.set_threads(before)


def tokens_of(model: Model, seed: int = 7) -> list[int]:
    return prompt_tokens(model.config.vocab_size, TOKENS, seed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_of_a_prompt_do_not_change_a_bit(model: Model, dtype: type) -> None:
    tokens = tokens_of(model)
    whole = run(model, in_chunks(tokens, TOKENS, prompt=True), dtype=dtype)
    for size in (1, 7, 16):
        np.testing.assert_array_equal(run(model, in_chunks(tokens, size, prompt=True), dtype=dtype), whole)


def test_generated_tokens_do_not_depend_on_how_many_run_in_a_step(model: Model) -> None:
    tokens = tokens_of(model)
    one_by_one = run(model, decode_after(tokens, 10))
    steps = Steps(model)
    rows = [steps.step([Piece(0, tokens[:10], prompt=True)])]
    rows += [steps.step([Piece(0, tokens[at : at + 6], prompt=False)]) for at in range(10, TOKENS, 6)]
    np.testing.assert_array_equal(np.concatenate(rows), one_by_one)


def test_block_size_and_placement_do_not_change_a_bit(model: Model) -> None:
    tokens = tokens_of(model)
    expected = run(model, decode_after(tokens, 10))
    for block_size, seed in ((64, 0), (16, 5), (8, 9)):
        found = run(model, decode_after(tokens, 10), block_size=block_size, seed=seed)
        np.testing.assert_array_equal(found, expected)


def test_neighbours_do_not_change_a_bit(model: Model) -> None:
    tokens = tokens_of(model)
    alone = run(model, decode_after(tokens, 12))
    others = [tokens_of(model, seed) for seed in (1, 2, 3)]
    steps = Steps(model, seqs=4)
    # The others are always somewhere else: in longer prompts, in their own answers, before and behind.
    rows = [
        steps.step([Piece(1, others[0][:20], True), Piece(0, tokens[:12], True), Piece(2, others[1][:3], True)])[20:32]
    ]
    for at in range(12, TOKENS):
        turn = at - 12
        before = Piece(1, others[0][20 + turn % 20 : 21 + turn % 20], False)
        behind = [Piece(2, others[1][3:6], turn % 2 == 0), Piece(3, others[2][turn : turn + 1], True)]
        rows.append(steps.step([before, Piece(0, tokens[at : at + 1], False), *behind])[1:2])
    np.testing.assert_array_equal(np.concatenate(rows), alone)


def test_threads_do_not_change_a_bit(model: Model, threads: None) -> None:
    tokens = tokens_of(model)
    kernels.set_threads(1)
    expected = run(model, decode_after(tokens, 17))
    for count in (2, 3, 8):
        kernels.set_threads(count)
        np.testing.assert_array_equal(run(model, decode_after(tokens, 17)), expected)


@pytest.fixture
def instruction_set() -> Iterator[None]:
    before = kernels.isa()
    yield
    kernels.select_isa(before)


def test_every_instruction_set_gives_nearly_the_same_logits(model: Model, instruction_set: None) -> None:
    tokens = tokens_of(model)
    expected = run(model, decode_after(tokens, 17))
    for name in kernels.available_isas():
        kernels.select_isa(name)
        np.testing.assert_allclose(run(model, decode_after(tokens, 17)), expected, atol=5e-5, rtol=0, err_msg=name)
