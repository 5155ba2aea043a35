"""Settings: one frozen object, read from the environment and overridden by arguments; nothing else is global.

``None`` means "auto": the place that knows the answer (the engine, the pack cache) resolves it into a new object, which
can be printed. An unknown ``FINBACK_*`` variable or a bad value is an error, not a shrug.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from finback.errors import ConfigError

KV_DTYPES = ("f32", "bf16", "f16")
TEXTS = ("format", "kv_dtype", "price_input", "price_cached_input", "price_output")
SERVER_STORE_MIB = 4096
PACK_FORMATS = ("q8", "q4")
# Variables with the prefix that are not settings: read where they act.
OTHER_VARIABLES = frozenset({"FINBACK_ISA"})


def _default_home() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "finback"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user may choose. Invariant: every value has passed :meth:`validate`."""

    home: Path = field(default_factory=_default_home)  # models/ and packs/ live below it
    threads: int | None = None  # None: every core this process may run on
    context: int | None = None  # tokens per request; None: the model's, capped by memory
    format: str | None = None  # None: as published; "q8" or "q4": packed narrower
    kv_dtype: str | None = None  # None: float32 for float32 models, else bf16 latents and f16 keys
    batch_tokens: int = 512  # token budget of one step
    max_requests: int = 64  # requests that run in one step
    max_queue: int = 512  # requests that wait; more are refused
    draft_tokens: int = 8  # guessed ahead from what an answer repeats, at most; 0: none are
    prefix_store_mib: int | None = None  # disk for such beginnings, to survive a restart; None: 0, for servers 4096
    prefix_cache_mib: int = 1024  # memory for beginnings that later requests may share; 0: none are kept
    price_input: str | None = None  # money for a million tokens, in decimal digits; None: money is not counted
    price_cached_input: str | None = None  # of prompt tokens found in the cache; None: as price_input
    price_output: str | None = None

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raise ConfigError unless every value can be used."""
        _check_range("threads", self.threads, 1, 1024)
        _check_range("context", self.context, 1, 1 << 24)
        _check_range("batch_tokens", self.batch_tokens, 1, 1 << 20)
        _check_range("max_requests", self.max_requests, 1, 4096)
        _check_range("max_queue", self.max_queue, 1, 1 << 20)
        _check_range("draft_tokens", self.draft_tokens, 0, 64)
        _check_range("prefix_store_mib", self.prefix_store_mib, 0, 1 << 24)
        _check_range("prefix_cache_mib", self.prefix_cache_mib, 0, 1 << 24)
        _check_choice("format", self.format, PACK_FORMATS)
        _check_choice("kv_dtype", self.kv_dtype, KV_DTYPES)

    def for_server(self) -> Settings:
        """What is left open, as it suits a server: it is restarted with its users' conversations unfinished."""
        return self if self.prefix_store_mib is not None else replace(self, prefix_store_mib=SERVER_STORE_MIB)

    def override(self, **values: Any) -> Settings:
        """A copy with every value that is not None replaced."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})


def _check_range(name: str, value: int | None, low: int, high: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{name} must be a whole number from {low} to {high}, not {value!r}")


def _check_choice(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from ``FINBACK_*`` environment variables: FINBACK_HOME, FINBACK_THREADS, FINBACK_CONTEXT and so on."""
    environ = os.environ if environ is None else environ
    known = {f"FINBACK_{f.name.upper()}": f.name for f in fields(Settings)}
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith("FINBACK_") or variable in OTHER_VARIABLES:
            continue
        if variable not in known:
            raise ConfigError(f"{variable} is not a setting", hint=f"known: {', '.join(sorted(known))}")
        values[known[variable]] = _parse(variable, known[variable], text)
    return Settings(**values)


def _parse(variable: str, name: str, text: str) -> Any:
    if name == "home":
        return Path(text).expanduser()
    if name in TEXTS:
        return text
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{variable} must be a whole number, not {text!r}") from None
