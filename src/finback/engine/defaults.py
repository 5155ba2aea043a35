"""The sampling settings that a model's makers publish with it: what a request gets where it does not say otherwise.

Hugging Face folders carry them in generation_config.json, GGUF files in ``general.sampling.*``. What is not published
is as in OpenAI's interface: temperature 1, nothing cut off, no penalties.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finback.engine.request import SamplingParams
from finback.errors import InvalidRequest, MalformedFile

if TYPE_CHECKING:
    from finback.weights.checkpoint import Checkpoint

_GGUF_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def published_defaults(checkpoint: Checkpoint) -> SamplingParams:
    """The published sampling settings; MalformedFile when one of them cannot be used."""
    if checkpoint.kind == "gguf":
        return _params(checkpoint.metadata, _GGUF_KEYS, str(checkpoint.path))
    config = checkpoint.side_json("generation_config.json")
    return _params(config, {name: name for name in _GGUF_KEYS}, "generation_config.json")


def _params(values: Mapping[str, Any], keys: Mapping[str, str], source: str) -> SamplingParams:
    published = {name: values[key] for name, key in keys.items() if values.get(key) is not None}
    try:
        return SamplingParams(**published)
    except InvalidRequest as error:
        raise MalformedFile(f"{source}: {error.message}") from None
