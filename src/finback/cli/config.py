"""``finback config``: the settings in force, and where each is from."""

from __future__ import annotations

from pathlib import Path

import click

from finback.cli import options


@click.group()
def config() -> None:
    """Show the settings and where they are from."""


@config.command()
@options.host
@options.port
@options.threads
@options.context
@options.format
@options.tls_cert
@options.tls_key
@options.log_format
@options.grace
@options.json
def show(
    host: str | None,
    port: int | None,
    threads: int | None,
    context: int | None,
    format: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    log_format: str | None,
    grace: int | None,
    json: bool,
) -> None:
    """Show every setting, its value, and whether a flag, a variable or the file gave it.

    Flags are those of `finback serve`: with them it shows what that command would use. Variables are FINBACK_ and the
    setting's name; the file is ~/.config/finback/config.toml, or what FINBACK_CONFIG names.
    """
    import os
    from dataclasses import asdict

    from finback.cli import output
    from finback.config import config_path, resolve

    network = {"host": host, "port": port, "tls_cert": tls_cert, "tls_key": tls_key, "log_format": log_format}
    engine = {"threads": threads, "context": context, "format": format}
    settings, origins = resolve({**network, **engine, "grace_s": grace})
    values = asdict(settings)
    if settings.ledger is not None:
        values["ledger"] = _without_password(settings.ledger)
    if json:
        path = config_path(os.environ)
        listed = {name: {"value": value, "origin": origins[name]} for name, value in values.items()}
        output.print_json({"file": path and str(path), "settings": listed})
    else:
        rows = [(name, "auto" if value is None else str(value), origins[name]) for name, value in values.items()]
        output.print_table(("SETTING", "VALUE", "ORIGIN"), rows)


def _without_password(dsn: str) -> str:
    """A database's address that may be shown."""
    import re

    return re.sub(r"(password=)\S+|(://[^:/@]*:)[^@]*(?=@)", lambda found: f"{found[1] or found[2]}***", dsn)
