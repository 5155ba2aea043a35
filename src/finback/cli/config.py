"""``finback config``: the settings in force, and where each is from."""

from __future__ import annotations

import typer

from finback.cli.options import Context, Format, Grace, Host, Json, LogFormat, Port, Threads, TlsCert, TlsKey

app = typer.Typer(no_args_is_help=True, help="Show the settings and where they are from.")


@app.callback()
def _group() -> None:
    """Keeps `show` a command of its own."""


@app.command()
def show(
    host: Host = None,
    port: Port = None,
    threads: Threads = None,
    context: Context = None,
    format: Format = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    log_format: LogFormat = None,
    grace: Grace = None,
    json: Json = False,
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
