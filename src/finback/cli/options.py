"""Arguments and options that several commands share, so that they look and behave alike everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from finback.config import Settings, load_settings


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
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def settings_of(threads: int | None = None, context: int | None = None, format: str | None = None) -> Settings:
    """The environment's settings with the options on top."""
    return load_settings().override(threads=threads, context=context, format=format)
