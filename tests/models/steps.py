"""Runs models without an engine: builds batches by hand, so that tests choose every chunk, role and neighbour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finback.models import Batch, Model, Segment

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Piece:
    """Some next tokens of one sequence, as prompt or as generated tokens."""

    seq: int
    tokens: Sequence[int]
    prompt: bool


class Steps:
    """A cache for a few sequences whose blocks lie scattered in it, and the positions reached so far."""

    def __init__(
        self,
        model: Model,
        *,
        seqs: int = 1,
        capacity: int = 128,
        block_size: int = 8,
        dtype: Any = np.float32,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.block_size = block_size
        blocks = -(-capacity // block_size)
        order = np.random.default_rng(seed).permutation(seqs * blocks + 3)  # a few blocks stay unused
        self.block_tables = order[: seqs * blocks].reshape(seqs, blocks).astype(np.int32)
        self.reached = [0] * seqs
        # Poison: a read of a slot that nobody wrote shows.
        poison = np.uint16(0x7FC0) if dtype == np.uint16 else dtype("nan")
        self.cache = [
            {name: np.full((len(order), block_size, *shape), poison, dtype) for name, shape in layer.items()}
            for layer in model.cache_layout()
        ]
        self.parts = model.bind(self.cache)

    def step(self, pieces: Sequence[Piece]) -> Array:
        """Logits of every row, pieces in order."""
        batch = self._batch(pieces)
        batch.check_integrity()
        return self.model.forward(batch, self.parts)

    def _batch(self, pieces: Sequence[Piece]) -> Batch:
        segments, row = [], 0
        for piece in pieces:
            stop = row + len(piece.tokens)
            segments.append(Segment(row, stop, piece.seq, self.reached[piece.seq], prompt=piece.prompt))
            self.reached[piece.seq] += len(piece.tokens)
            row = stop
        positions = np.concatenate([np.arange(s.first_position, s.context, dtype=np.int32) for s in segments])
        seq_ids = np.concatenate([np.full(s.stop - s.start, s.seq, np.int32) for s in segments])
        blocks = self.block_tables[seq_ids, positions // self.block_size].astype(np.int64)
        return Batch(
            tokens=np.array([token for piece in pieces for token in piece.tokens], np.int64),
            positions=positions,
            seq_ids=seq_ids,
            slots=blocks * self.block_size + positions % self.block_size,
            block_tables=self.block_tables,
            segments=tuple(segments),
            logit_rows=np.arange(row, dtype=np.int64),
        )


def in_chunks(tokens: Sequence[int], size: int, *, prompt: bool) -> list[list[Piece]]:
    """Steps of one sequence, ``size`` tokens each."""
    return [[Piece(0, tokens[at : at + size], prompt)] for at in range(0, len(tokens), size)]


def full(tokens: Sequence[int]) -> list[list[Piece]]:
    """All tokens as one prompt."""
    return in_chunks(tokens, len(tokens), prompt=True)


def decode_after(tokens: Sequence[int], prompt: int) -> list[list[Piece]]:
    """``prompt`` prompt tokens in one step, then generated tokens one by one."""
    return full(tokens[:prompt]) + in_chunks(tokens[prompt:], 1, prompt=False)


PLANS: Mapping[str, Any] = {
    "full": full,
    "chunks of 7": lambda tokens: in_chunks(tokens, 7, prompt=True),
    "decode": lambda tokens: decode_after(tokens, 5),
    "decode from the first token": lambda tokens: in_chunks(tokens, 1, prompt=False),
}


def run(model: Model, plan: Iterable[Sequence[Piece]], **options: Any) -> Array:
    """Logits of all rows of all steps of one sequence."""
    steps = Steps(model, **options)
    return np.concatenate([steps.step(pieces) for pieces in plan])


def greedy(model: Model, prompt: Sequence[int], count: int, **options: Any) -> list[int]:
    """The next ``count`` tokens: the prompt in one step, then one by one."""
    steps = Steps(model, capacity=len(prompt) + count, **options)
    tokens = [int(steps.step([Piece(0, prompt, prompt=True)])[-1].argmax())]
    while len(tokens) < count:
        tokens.append(int(steps.step([Piece(0, tokens[-1:], prompt=False)])[-1].argmax()))
    return tokens
