"""Arguments and options that several commands share, so that they look and behave alike everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from finback.config import Settings, load_settings, resolve
from finback.hub.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Wrapped = TypeVar("Wrapped", bound=Callable[..., Any])


def complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names that shell completion offers: what is on this machine first, then the catalog."""
    from click.shell_completion import CompletionItem

    from finback.hub.catalog import CATALOG
    from finback.hub.store import Store

    pulled = [(model.name, "on this machine") for model in Store(load_settings().home).models()]
    known = [(entry.name, entry.title) for entry in CATALOG]
    names = dict([*known, *pulled])
    return [CompletionItem(name, help=text) for name, text in names.items() if name.startswith(incomplete)]


def complete_pulled(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names on this machine."""
    from finback.hub.store import Store

    return [model.name for model in Store(load_settings().home).models() if model.name.startswith(incomplete)]


_FILE = click.Path(path_type=Path)
_WHICH_MODEL = "A name, a repository or a path."

model_argument = click.argument("model", metavar="MODEL", help=_WHICH_MODEL, shell_complete=complete_model)
model_or_default = click.argument(
    "model", metavar="[MODEL]", help=_WHICH_MODEL, default=DEFAULT_MODEL, shell_complete=complete_model
)
model_option = click.option(
    "--model", "-m", metavar="MODEL", help="What answers.", default=DEFAULT_MODEL, shell_complete=complete_model
)
thinking = click.option(
    "--thinking/--no-thinking", default=None, help="Reason before answering, where the model can choose."
)
threads = click.option(
    "--threads", "-t", type=int, metavar="N", help="Cores to use; all that this process may by default."
)
context = click.option("--context", "-c", type=int, metavar="TOKENS", help="Longest prompt and answer together.")
format = click.option("--format", metavar="q8|q4", help="Pack a BF16, F16 or FP8 model narrower; see `show`.")
host = click.option("--host", metavar="ADDRESS", help="Where to listen; 127.0.0.1 by default.")
port = click.option(
    "--port", "-p", type=click.IntRange(0, 65535), metavar="N", help="8000 by default; 0: any free one."
)
tls_cert = click.option("--tls-cert", type=_FILE, metavar="FILE", help="Certificate chain, PEM.")
tls_key = click.option("--tls-key", type=_FILE, metavar="FILE", help="Its private key, PEM.")
log_format = click.option("--log-format", metavar="text|json", help="json: a line for every request, too.")
grace = click.option("--grace", type=int, metavar="SECONDS", help="For running requests to end after SIGTERM.")
json = click.option("--json", is_flag=True, help="Print JSON.")


def settings_of(
    threads: int | None = None, context: int | None = None, format: str | None = None, **others: Any
) -> Settings:
    """The settings of the file and the environment with the options on top."""
    return resolve({"threads": threads, "context": context, "format": format, **others}).settings
