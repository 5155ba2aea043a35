"""From work to a batch: slots, roles, tables, and rows that get logits."""

from __future__ import annotations

from array import array

import numpy as np

from finback.engine.memory import CachePlan
from finback.engine.request import Request
from finback.engine.runner import Runner, build_batch
from finback.engine.scheduler import Work
from finback.models.batch import Segment
from tests.conftest import WIDTH, TinyModel


def work(prompt: int, answer: int, start: int, stop: int, blocks: list[int], first_token: int = 0) -> Work:
    tokens = list(range(first_token, first_token + prompt + answer))
    return Work(Request("r", tokens, prompt, 1000), start, stop, array("i", blocks))


def test_a_batch_of_a_prompt_chunk_and_an_answer() -> None:
    batch = build_batch([work(100, 5, 104, 105, [7, 3]), work(70, 0, 62, 66, [9, 2, 5], first_token=100)])
    batch.check_integrity()
    assert batch.tokens.tolist() == [104, 162, 163, 164, 165]
    assert batch.positions.tolist() == [104, 62, 63, 64, 65]
    assert batch.seq_ids.tolist() == [0, 1, 1, 1, 1]
    assert batch.slots.tolist() == [3 * 64 + 40, 9 * 64 + 62, 9 * 64 + 63, 2 * 64, 2 * 64 + 1]
    assert batch.block_tables.tolist() == [[7, 3, 0], [9, 2, 5]]
    assert batch.segments == (Segment(0, 1, 0, 104, prompt=False), Segment(1, 5, 1, 62, prompt=True))
    assert batch.logit_rows.tolist() == [0]  # the prompt is not complete


def test_types_are_what_kernels_take() -> None:
    batch = build_batch([work(3, 0, 0, 3, [0])])
    types = [batch.tokens, batch.positions, batch.seq_ids, batch.slots, batch.block_tables, batch.logit_rows]
    assert [a.dtype for a in types] == [np.int64, np.int32, np.int32, np.int64, np.int32, np.int64]
    assert all(a.flags.c_contiguous for a in types)


def test_recomputed_answers_keep_their_role() -> None:
    batch = build_batch([work(4, 3, 0, 7, [0])])
    batch.check_integrity()
    assert batch.segments == (Segment(0, 4, 0, 0, prompt=True), Segment(4, 7, 0, 4, prompt=False))
    assert batch.logit_rows.tolist() == [6]


def test_every_row_on_request() -> None:
    assert build_batch([work(5, 0, 0, 3, [0])], every_row=True).logit_rows.tolist() == [0, 1, 2]


def test_cache_arrays_follow_the_layout_and_type() -> None:
    for kv_dtype, dtype in (("f32", np.float32), ("f16", np.float16), ("bf16", np.uint16)):
        cache = Runner(TinyModel(), CachePlan(512, kv_dtype, 3, 100))._cache
        assert [set(layer) for layer in cache] == [{"value"}, {"role"}]
        assert cache[0]["value"].shape == (3, 64, WIDTH)
        assert cache[0]["value"].dtype == dtype
        assert not cache[0]["value"].any()
