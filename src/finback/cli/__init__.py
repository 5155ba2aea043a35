"""The command line: one file per command, each of which parses, calls one function, and prints.

Data goes to stdout, everything else to stderr; every listing also speaks ``--json``. Commands import what they need
when they run, so that ``finback --help`` and shell completion answer at once.
"""

from __future__ import annotations


def main() -> None:
    """The ``finback`` program."""
    import gc

    from finback.cli.app import app

    # Loading makes some hundred thousand objects that stay. By default they would be looked through every 700.
    gc.set_threshold(50_000)
    app(prog_name="finback")
