"""What one step runs: the arrays that the engine's runner hands to a model, and nothing else.

A batch is a flat list of token rows. Rows of one sequence that play one role (prompt or generated) and sit
at consecutive positions form a segment; segments follow each other without gaps. A row's slot, which is
``block * block_size + offset``, says where its keys and values go; the sequence's row of ``block_tables``
says where its earlier ones are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows ``start`` to ``stop`` of a batch: one sequence, consecutive positions, one role."""

    start: int
    stop: int
    seq: int
    first_position: int
    prompt: bool

    @property
    def context(self) -> int:
        """Positions of the sequence that the segment's last row sees, itself included."""
        return self.first_position + self.stop - self.start


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's rows. Invariant: :meth:`check_integrity` passes."""

    tokens: NDArray[np.int64]  # [n]
    positions: NDArray[np.int32]  # [n]
    seq_ids: NDArray[np.int32]  # [n], row of block_tables
    slots: NDArray[np.int64]  # [n], where this row's keys and values go
    block_tables: NDArray[np.int32]  # [sequences, most blocks of one sequence]
    segments: tuple[Segment, ...]
    logit_rows: NDArray[np.int64]  # [m], rows whose logits are wanted

    @property
    def rows(self) -> int:
        """Number of token rows."""
        return len(self.tokens)

    @property
    def prompts(self) -> NDArray[np.int32]:
        """First row and end of each segment whose tokens came from the caller: [prompts, 2]."""
        bounds = [(segment.start, segment.stop) for segment in self.segments if segment.prompt]
        return np.array(bounds, np.int32).reshape(-1, 2)

    def check_integrity(self) -> None:
        """Raise AssertionError unless the segments cover the rows in order and agree with the row arrays."""
        n = self.rows
        arrays: tuple[NDArray[Any], ...] = (self.positions, self.seq_ids, self.slots)
        assert all(len(array) == n for array in arrays), "row arrays differ in length"
        edges = [0, *(s.stop for s in self.segments)]
        assert edges == [*(s.start for s in self.segments), n], "segments leave gaps or overlap"
        for s in self.segments:
            expected = np.arange(s.first_position, s.context)
            assert np.array_equal(self.positions[s.start : s.stop], expected), "segment and positions differ"
            assert (self.seq_ids[s.start : s.stop] == s.seq).all(), "segment and sequence ids differ"
