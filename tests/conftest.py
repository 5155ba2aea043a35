"""A model and a tokenizer so small that tests of the engine, the Python face and the server take milliseconds.

:class:`TinyModel` has the protocol of a real model and needs no kernel. It really reads its cache through the
block tables, and what a token leaves there depends on its role, so wrong slots, tables, positions or roles
change its logits. Each row is computed by itself, as rule R1 asks. :class:`ByteTokenizer` maps bytes to ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import hypothesis
import numpy as np
import pytest

from finback.config import Settings

# The same examples on every run, however slow the machine; --hypothesis-profile=default draws new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

BOS, EOS = 256, 257
WIDTH = 8  # of what a token leaves in the tiny model's cache
KV_VALUES = WIDTH + 1


class ByteTokenizer:
    """One token per byte of UTF-8, then BOS and EOS."""

    vocab_size = 258
    bos_id = BOS
    eos_ids = frozenset({EOS})
    adds_bos = True

    def encode(self, text: str, *, bos: bool = False, special: bool = True) -> list[int]:
        return [BOS] * bos + list(text.encode())

    def encode_pieces(self, pieces: Iterable[Any]) -> list[int]:
        return self.encode("".join(piece.text for piece in pieces))

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        return b"".join(self.token_bytes(i) for i in ids if i < 256 or not skip_special).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else {BOS: b"<bos>", EOS: b"<eos>"}[token]


@dataclass(frozen=True)
class TinyConfig:
    """What the engine asks of a model's configuration."""

    model_type: str = "tiny"
    vocab_size: int = 258
    max_position_embeddings: int = 512
    dtype: str = "float32"
    is_mla: bool = True  # what a token leaves in the cache depends on its role
    bos_token_id: int | None = BOS
    eos_token_ids: tuple[int, ...] = (EOS,)

    def kv_bytes_per_token(self, dtype: str) -> int:
        return KV_VALUES * {"f32": 4, "f16": 2, "bf16": 2}[dtype]


class TinyModel:
    """Logits from a decaying sum over the cached values of a sequence.

    ``poison``: a token whose logits are NaN. ``eos_bias``: added to the logit of EOS. ``script``: bytes that
    the answer follows, with certainty, from the first generated token on, then EOS.
    """

    def __init__(
        self, *, poison: int | None = None, eos_bias: float = -100.0, script: str | None = None, **config: Any
    ) -> None:
        self.config = TinyConfig(**config)
        random = np.random.default_rng(20)
        self._embed = random.normal(size=(self.config.vocab_size, WIDTH)).astype(np.float32)
        self._head = random.normal(size=(self.config.vocab_size, WIDTH)).astype(np.float32)
        self._poison = poison
        self._eos_bias = eos_bias
        self._script = None if script is None else [*script.encode(), EOS]
        self.batches: list[Any] = []  # what was run, for tests to look at

    def cache_layout(self) -> list[dict[str, tuple[int, ...]]]:
        return [{"value": (WIDTH,)}, {"role": (1,)}]

    def bind(self, cache: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        return cache

    def forward(self, batch: Any, cache: list[dict[str, np.ndarray]]) -> np.ndarray:
        batch.check_integrity()
        self.batches.append(batch)
        values = cache[0]["value"].reshape(-1, WIDTH)
        roles = cache[1]["role"].reshape(-1)
        for segment in batch.segments:
            for row in range(segment.start, segment.stop):
                values[batch.slots[row]] = self._embed[batch.tokens[row]] * (1.0 if segment.prompt else 1.25)
                roles[batch.slots[row]] = 1.0 if segment.prompt else 2.0
        return np.array([self._row(batch, int(row), values, roles) for row in batch.logit_rows], np.float32).reshape(
            -1, self.config.vocab_size
        )

    def _row(self, batch: Any, row: int, values: np.ndarray, roles: np.ndarray) -> np.ndarray:
        past = np.arange(batch.positions[row] + 1)
        slots = batch.block_tables[batch.seq_ids[row], past // 64].astype(np.int64) * 64 + past % 64
        if batch.tokens[row] == self._poison:
            return np.full(self.config.vocab_size, np.nan, np.float32)
        if self._script is not None:
            return self._scripted(int((roles[slots] == 2.0).sum()))
        decay = (0.9 ** past[::-1]).astype(np.float32)
        state = np.tanh((decay[:, None] * values[slots]).sum(axis=0))
        logits = (self._head * state).sum(axis=1)
        logits[EOS] += self._eos_bias
        return logits

    def _scripted(self, generated: int) -> np.ndarray:
        logits = np.zeros(self.config.vocab_size, np.float32)
        logits[self._script[min(generated, len(self._script) - 1)]] = 50.0
        return logits


@pytest.fixture
def byte_tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture
def make_tiny_model() -> Callable[..., TinyModel]:
    """``make_tiny_model(poison=None, eos_bias=-100, script=None, **config)``."""
    return TinyModel


@pytest.fixture
def tiny_model() -> TinyModel:
    return TinyModel()


@pytest.fixture
def make_engine() -> Callable[..., Any]:
    """``make_engine(model=None, blocks=64, **settings)``: an engine over a tiny model and ``blocks`` blocks."""
    from finback.engine.engine import Engine
    from finback.engine.memory import plan_cache

    def make(model: TinyModel | None = None, blocks: int = 64, **settings: Any) -> Engine:
        model, chosen = model or TinyModel(), Settings(**settings)
        plan = plan_cache(model.config, chosen, blocks * 64 * model.config.kv_bytes_per_token("f32"))
        return Engine(model, ByteTokenizer(), chosen, plan=plan)

    return make
