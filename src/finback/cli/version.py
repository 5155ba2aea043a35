"""``finback version``: what is installed."""

from __future__ import annotations

import platform

import click

from finback import __version__
from finback.cli import options
from finback.cli.output import print_json


@click.command()
@options.json
def version(json: bool) -> None:
    """Print the version of Finback and of the Python below it."""
    if json:
        print_json({"finback": __version__, "python": platform.python_version(), "platform": platform.platform()})
    else:
        click.echo(
            f"finback {__version__} (Python {platform.python_version()}, {platform.system()} {platform.machine()})"
        )
