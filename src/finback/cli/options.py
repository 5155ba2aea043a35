"""Arguments and options that several commands share, so that they look and behave alike everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from finback.config import Settings, load_settings, resolve


def complete_model(incomplete: str) -> Iterable[tuple[str, str]]:
    """Names that shell completion offers: what is on this machine first, then the catalog."""
    from finback.hub.catalog import CATALOG
    from finback.hub.store import Store

    pulled = [(model.name, "on this machine") for model in Store(load_settings().home).models()]
    known = [(entry.name, entry.title) for entry in CATALOG]
    names = dict([*known, *pulled])
    return [(name, text) for name, text in names.items() if name.startswith(incomplete)]


def complete_pulled(incomplete: str) -> Iterable[str]:
    """Names on this machine."""
    from finback.hub.store import Store

    return [model.name for model in Store(load_settings().home).models() if model.name.startswith(incomplete)]


ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A name, a repository or a path.", autocompletion=complete_model)
]
Threads = Annotated[
    int | None, typer.Option("--threads", "-t", metavar="N", help="Cores to use; all that this process may by default.")
]
Context = Annotated[
    int | None, typer.Option("--context", "-c", metavar="TOKENS", help="Longest prompt and answer together.")
]
Format = Annotated[
    str | None, typer.Option("--format", metavar="q8|q4", help="Pack a BF16, F16 or FP8 model narrower; see `show`.")
]
Host = Annotated[str | None, typer.Option("--host", metavar="ADDRESS", help="Where to listen; 127.0.0.1 by default.")]
Port = Annotated[int | None, typer.Option("--port", "-p", min=0, max=65535, help="8000 by default; 0: any free one.")]
TlsCert = Annotated[Path | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate chain, PEM.")]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Its private key, PEM.")]
LogFormat = Annotated[
    str | None, typer.Option("--log-format", metavar="text|json", help="json: a line for every request, too.")
]
Grace = Annotated[
    int | None, typer.Option("--grace", metavar="SECONDS", help="For running requests to end after SIGTERM.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def settings_of(
    threads: int | None = None, context: int | None = None, format: str | None = None, **others: Any
) -> Settings:
    """The settings of the file and the environment with the options on top."""
    return resolve({"threads": threads, "context": context, "format": format, **others}).settings
