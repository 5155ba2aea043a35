"""``finback serve``: a model over HTTP, for programs that speak OpenAI's dialect."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

import click

from finback.cli import options


@click.command()
@options.model_or_default
@options.host
@options.port
@options.threads
@options.context
@options.format
@options.tls_cert
@options.tls_key
@options.log_format
@options.grace
def serve(
    model: str,
    host: str | None,
    port: int | None,
    threads: int | None,
    context: int | None,
    format: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    log_format: str | None,
    grace: int | None,
) -> None:
    """Serve a model over HTTP.

    OpenAI's dialect at /v1/chat/completions, /v1/completions and /v1/models. Without keys (see `finback keys`) it
    serves this machine only. Ctrl-C or SIGTERM lets running requests end; a second one does not.
    """
    from finback import server
    from finback.cli.models import load
    from finback.cli.output import note

    chosen = {"host": host, "port": port, "tls_cert": tls_cert, "tls_key": tls_key}
    settings = options.settings_of(threads, context, format, **chosen, log_format=log_format, grace_s=grace)
    settings = settings.for_server()
    server.require_guard(settings.host, settings.home)
    if not server.is_loopback(settings.host) and settings.tls_cert is None:
        note("keys and prompts travel unencrypted: use --tls-cert and --tls-key, or a proxy that encrypts")
    signal.signal(signal.SIGTERM, _leave)
    with load(model, settings) as loaded:

        def announce(url: str) -> None:
            note(f"serving {loaded.name} at {url}/v1 (context {loaded.context} tokens). Ctrl-C ends it.")

        server.run(loaded, settings, on_ready=announce)


def _leave(number: int, frame: FrameType | None) -> None:
    """SIGTERM is a wish like any other: once running requests have ended, the program has done its work."""
    sys.exit(0)
