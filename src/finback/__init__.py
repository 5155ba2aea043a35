"""Finback runs DeepSeek-family open models on hardware that people already own.

    import finback

    with finback.load("smollm2:135m-q4_1") as model:
        print(model.chat([{"role": "user", "content": "What is a finback?"}]).text)

The names below load on first use, so that ``import finback`` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from finback.api import Completion, LoadedModel, load
    from finback.errors import FinbackError

_HOME = {
    "load": "finback.api",
    "LoadedModel": "finback.api",
    "Completion": "finback.api",
    "FinbackError": "finback.errors",
}
__all__ = ["Completion", "FinbackError", "LoadedModel", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'finback' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
