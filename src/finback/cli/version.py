"""``finback version``: what is installed."""

from __future__ import annotations

import platform

import typer

from finback import __version__
from finback.cli.options import Json
from finback.cli.output import print_json


def version(json: Json = False) -> None:
    """Print the version of Finback and of the Python below it."""
    if json:
        print_json({"finback": __version__, "python": platform.python_version(), "platform": platform.platform()})
    else:
        typer.echo(
            f"finback {__version__} (Python {platform.python_version()}, {platform.system()} {platform.machine()})"
        )


def print_and_exit(wanted: bool) -> None:
    """``finback --version``."""
    if wanted:
        typer.echo(f"finback {__version__}")
        raise typer.Exit
