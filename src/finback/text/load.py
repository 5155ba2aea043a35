"""Finds the tokenizer among a model's files."""

from __future__ import annotations

from finback.text.ids_only import IdsOnly
from finback.text.tokenizer import Tokenizer
from finback.text.vocabulary_gguf import NO_VOCABULARY, read_gguf
from finback.weights.checkpoint import Checkpoint


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that comes with a model; :class:`IdsOnly` if none does."""
    if checkpoint.kind == "gguf":
        bare = checkpoint.metadata.get("tokenizer.ggml.model") in NO_VOCABULARY
        return IdsOnly() if bare else Tokenizer(read_gguf(checkpoint.metadata))
    if "tokenizer.json" not in checkpoint.files:
        return IdsOnly()
    from finback.text.vocabulary_json import read_json  # brings a JSON library that GGUF needs not wait for

    return Tokenizer(read_json(checkpoint))
