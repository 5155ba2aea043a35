"""From a schedule to arrays: the runner owns the cache's memory and builds the batch that the model runs."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finback.engine.memory import BLOCK_SIZE, CachePlan
from finback.engine.scheduler import Work
from finback.errors import ModelTooLarge
from finback.models.batch import Batch, Segment

if TYPE_CHECKING:
    from finback.models import Model

_NUMPY_KV = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}  # bfloat16 as its bits


class Runner:
    """Runs work on a model. Rows that choose no token get no logits."""

    def __init__(self, model: Model, plan: CachePlan) -> None:
        self.model = model
        self._cache = _allocate(model, plan)
        self._parts = model.bind(self._cache)

    def run(self, plan: Sequence[Work], *, every_row: bool = False) -> NDArray[np.float32]:
        """Logits of the rows after which a token is chosen, in order; of every row if asked."""
        batch = build_batch(plan, every_row=every_row)
        return self.model.forward(batch, self._parts)

    def touch(self, num_bytes: int) -> None:
        """Have the system find memory for the first blocks now: a request that fills many at once would wait for it."""
        count = num_bytes // self.block_bytes
        for layer in self._cache:
            for array in layer.values():
                array[:count] = 0

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, over all layers."""
        return sum(array[0].nbytes for layer in self._cache for array in layer.values())

    def save_block(self, block: int) -> list[memoryview]:
        """What a block holds. Borrowed: read it before the block changes."""
        return [array[block].reshape(-1).view(np.uint8).data for layer in self._cache for array in layer.values()]

    def restore_block(self, block: int, data: memoryview) -> None:
        """Make a block hold what :meth:`save_block` gave."""
        at = 0
        for layer in self._cache:
            for array in layer.values():
                there = array[block].reshape(-1).view(np.uint8)
                there[:] = np.frombuffer(data, np.uint8, len(there), at)
                at += len(there)


def _allocate(model: Model, plan: CachePlan) -> list[dict[str, NDArray[Any]]]:
    """Arrays [blocks, block size, ...] per layer: zero pages, which take no memory until they are written."""
    dtype = _NUMPY_KV[plan.kv_dtype]
    try:
        return [
            {name: _zeros((plan.num_blocks, BLOCK_SIZE, *shape), dtype) for name, shape in layer.items()}
            for layer in model.cache_layout()
        ]
    except (MemoryError, OSError):
        raise ModelTooLarge(
            f"the system refuses {plan.pool_bytes / 2**30:.2f} GiB for the key-value cache",
            hint="ask for a shorter context or fewer requests at once",
        ) from None


def _zeros(shape: tuple[int, ...], dtype: type[Any]) -> NDArray[Any]:
    # In small pages, not NumPy's: large ones are cleared whole, 2 MiB for each array of each layer at the first token.
    count = math.prod(shape)
    pages = mmap.mmap(-1, max(count * np.dtype(dtype).itemsize, 1), flags=mmap.MAP_PRIVATE)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # a kernel without large pages knows no such advice
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype, count).reshape(shape)


def build_batch(plan: Sequence[Work], *, every_row: bool = False) -> Batch:
    """The arrays of one step."""
    # Lists first: for a step of a few tokens they cost less than arithmetic on small arrays.
    tokens: list[int] = []
    positions: list[int] = []
    seq_ids: list[int] = []
    slots: list[int] = []
    last_rows: list[int] = []  # of each work: those after which a token is chosen
    for seq, work in enumerate(plan):
        span = range(work.start, work.stop)
        tokens += work.tokens
        positions += span
        seq_ids += [seq] * len(span)
        slots += [work.blocks[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE for at in span]
        last_rows += range(len(tokens) - work.num_choices, len(tokens))
    return Batch(
        tokens=np.array(tokens, np.int64),
        positions=np.array(positions, np.int32),
        seq_ids=np.array(seq_ids, np.int32),
        slots=np.array(slots, np.int64),
        block_tables=_block_tables(plan),
        segments=_segments(plan),
        logit_rows=np.arange(len(tokens)) if every_row else np.array(last_rows, np.int64),
    )


def _block_tables(plan: Sequence[Work]) -> NDArray[np.int32]:
    tables = np.zeros((len(plan), max(len(work.blocks) for work in plan)), np.int32)
    for row, work in zip(tables, plan, strict=True):
        row[: len(work.blocks)] = work.blocks
    return tables


def _segments(plan: Sequence[Work]) -> tuple[Segment, ...]:
    """Each work's rows, divided where the prompt ends: the two sides play different roles."""
    segments: list[Segment] = []
    row = 0
    for seq, work in enumerate(plan):
        border = min(max(work.start, work.request.num_prompt), work.stop)
        for first, last in ((work.start, border), (border, work.stop)):
            if first < last:
                segments.append(Segment(row, row + last - first, seq, first, prompt=last <= work.request.num_prompt))
                row += last - first
    return tuple(segments)
