"""Settings: one frozen object, from a file, the environment and arguments, the later over the earlier; nothing else is
global. :func:`resolve` also tells where each value is from.

``None`` means "auto": the place that knows the answer (the engine, the pack cache) resolves it into a new object, which
can be printed. An unknown ``FINBACK_*`` variable or a bad value is an error, not a shrug.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from finback.errors import ConfigError

KV_DTYPES = ("f32", "bf16", "f16")
SERVER_STORE_MIB = 4096
LOG_FORMATS = ("text", "json")
TEXTS = frozenset(
    {"format", "kv_dtype", "host", "log_format", "ledger", "price_input", "price_cached_input", "price_output"}
)
PATHS = frozenset({"home", "tls_cert", "tls_key"})
PACK_FORMATS = ("q8", "q4")
# Variables with the prefix that are not settings: read where they act.
OTHER_VARIABLES = frozenset({"FINBACK_ISA", "FINBACK_CONFIG", "FINBACK_API_KEY"})


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
    prefix_cache_mib: int = 1024  # memory for beginnings that later requests may share; 0: none are kept
    prefix_store_mib: int | None = None  # disk for such beginnings, to survive a restart; None: 0, for servers 4096
    host: str = "127.0.0.1"  # of the server, as all that follow
    port: int = 8000  # 0: any free one
    tls_cert: Path | None = None  # PEM, with tls_key; None: no TLS
    tls_key: Path | None = None
    log_format: str = "text"  # or "json": one object a line, with a line for every request
    grace_s: int = 30  # running requests may finish for so long after SIGTERM
    max_body_mib: int = 32  # of a request
    ledger: str | None = None  # PostgreSQL's address, postgresql://...; None: a file below home
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
        _check_range("port", self.port, 0, 65535)
        _check_choice("log_format", self.log_format, LOG_FORMATS)
        _check_range("grace_s", self.grace_s, 0, 86_400)
        _check_range("max_body_mib", self.max_body_mib, 1, 1024)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key go together")

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


class Resolved(NamedTuple):
    """Settings, and for each where it is from: "default", a file, a variable or a flag."""

    settings: Settings
    origins: dict[str, str]


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from the file and from ``FINBACK_*`` variables: FINBACK_HOME, FINBACK_THREADS, FINBACK_CONTEXT..."""
    return resolve({}, environ).settings


def resolve(flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Resolved:
    """Settings of the file, over them those of the environment, over them the ``flags`` that are not None."""
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origins = {f.name: "default" for f in fields(Settings)}
    path = config_path(environ)
    sources = [] if path is None else _from_file(path)
    for origin, name, value in [*sources, *_from_environment(environ)]:
        values[name], origins[name] = _parse(origin, name, value), origin
    for name, value in flags.items():
        if value is not None:
            values[name], origins[name] = value, f"--{name.removesuffix('_s').replace('_', '-')}"
    return Resolved(Settings(**values), origins)


def config_path(environ: Mapping[str, str]) -> Path | None:
    """The settings' file: FINBACK_CONFIG, or finback/config.toml where the user's settings are; None: there is none."""
    chosen = environ.get("FINBACK_CONFIG")
    if chosen is not None:
        return Path(chosen).expanduser() if chosen else None
    base = environ.get("XDG_CONFIG_HOME")
    path = (Path(base) if base else Path.home() / ".config") / "finback" / "config.toml"
    return path if path.exists() else None


def _from_file(path: Path) -> list[tuple[str, str, Any]]:
    """(origin, name, value) of each line of the file."""
    import tomllib

    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the settings in {path}: {error.strerror}") from error
    except ValueError as error:  # bad TOML, or no text
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for name in values:
        if name not in _NAMES:
            raise ConfigError(f"{name} in {path} is not a setting", hint=f"known: {', '.join(sorted(_NAMES))}")
    return [(str(path), name, value) for name, value in values.items()]


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, str, Any]]:
    """(origin, name, value) of each of Finback's variables."""
    known = {f"FINBACK_{name.upper()}": name for name in _NAMES}
    ours = {variable: text for variable, text in environ.items() if variable.startswith("FINBACK_")}
    for variable in ours.keys() - known.keys() - OTHER_VARIABLES:
        raise ConfigError(f"{variable} is not a setting", hint=f"known: {', '.join(sorted(known))}")
    return [(variable, known[variable], text) for variable, text in ours.items() if variable in known]


def _parse(origin: str, name: str, value: Any) -> Any:
    """A value as the setting has it: files have types, variables are text."""
    what = origin if origin.startswith("FINBACK_") else f"{name} in {origin}"
    if name in PATHS and isinstance(value, str):
        return Path(value).expanduser()
    if name in TEXTS and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    try:
        if name in TEXTS or name in PATHS or isinstance(value, bool | float):
            raise ValueError
        return int(value)
    except (ValueError, TypeError):
        kind = "text" if name in TEXTS or name in PATHS else "a whole number"
        raise ConfigError(f"{what} must be {kind}, not {value!r}") from None


_NAMES = frozenset(f.name for f in fields(Settings))
