"""``finback serve``: a model over HTTP, for programs that speak OpenAI's dialect."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from finback.cli.options import Context, Format, Threads, complete_model, settings_of
from finback.hub.catalog import DEFAULT_MODEL


def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name, a repository or a path.", autocompletion=complete_model)
    ] = DEFAULT_MODEL,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="0: any free one.")] = 8000,
    threads: Threads = None,
    context: Context = None,
    format: Format = None,
) -> None:
    """Serve a model over HTTP.

    OpenAI's dialect at /v1/chat/completions, /v1/completions and /v1/models. Without keys (see `finback keys`) it
    serves this machine only.
    """
    from finback import server
    from finback.cli.models import load
    from finback.cli.output import note

    settings = settings_of(threads, context, format).for_server()
    server.require_guard(host, settings.home)
    signal.signal(signal.SIGTERM, _leave)
    with load(model, settings) as loaded:

        def announce(url: str) -> None:
            note(f"serving {loaded.name} at {url}/v1 (context {loaded.context} tokens). Ctrl-C ends it.")

        server.run(loaded, host=host, port=port, on_ready=announce)


def _leave(number: int, frame: FrameType | None) -> None:
    """SIGTERM is a wish like any other: once running requests have ended, the program has done its work."""
    sys.exit(0)
