"""The program: its commands, its global options, and the one place where errors become two lines and an exit status.

Statuses: 0 done, 1 a reported error, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from finback.cli import (
    bench,
    bench_serve,
    chat,
    config,
    doctor,
    keys,
    list,
    ps,
    pull,
    rm,
    run,
    serve,
    show,
    usage,
    version,
)
from finback.errors import FinbackError


class Program(TyperGroup):
    """The group of all commands. Whatever a command raises ends here."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error becomes ``error: ...`` and ``hint: ...`` on stderr, never a traceback."""
        _tolerate_odd_text()
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, TyperException, BrokenPipeError):
            raise  # these are typer's to handle
        except Exception as fault:
            if ctx.params.get("debug"):
                raise
            report(fault)
            raise typer.Exit(1) from fault


def report(fault: Exception) -> None:
    """Print what went wrong and what to do about it."""
    from finback.cli.output import complain

    if isinstance(fault, FinbackError):
        complain(fault.message, fault.hint)
    elif isinstance(fault, OSError):
        where = f"{fault.filename}: " if fault.filename else ""
        complain(f"{where}{fault.strerror or fault}", None)
    elif isinstance(fault, MemoryError):
        complain("out of memory", "close other programs, take a smaller model, or a shorter --context")
    else:
        what = f"{type(fault).__name__}: {fault}".splitlines()[0]
        complain(f"a bug in Finback ({what})", "run it again as `finback --debug ...` and report what it prints")


def _tolerate_odd_text() -> None:
    """Bytes that are no text, and text that the terminal cannot show, are replaced rather than fatal."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


app = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run DeepSeek-family open models on hardware you already own.",
    epilog="Start with `finback chat`: it fetches a small model and talks to you.",
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and end.", is_eager=True, callback=version.print_and_exit),
    ] = False,
) -> None:
    """Options that come before the command; both act elsewhere."""


class DefaultCommand(TyperGroup):
    """A group whose first command is meant when none is named."""

    def parse_args(self, ctx: Any, args: Any) -> Any:
        """Name the command if the first argument does not."""
        first = next(iter(self.commands))
        return super().parse_args(ctx, args if args and args[0] in self.commands else [first, *args])


_bench = typer.Typer(cls=DefaultCommand, help="Measure prefill and decode speed; `bench serve`: a server under load.")
_bench.command("model")(bench.bench)
_bench.command("serve")(bench_serve.serve)
app.add_typer(_bench, name="bench")

for _command in (chat, run, serve, pull, list, show, rm, ps, usage, doctor, version):
    _name = _command.__name__.rpartition(".")[2]
    app.command(_name)(getattr(_command, _name))
app.add_typer(keys.app, name="keys")
app.add_typer(config.app, name="config")
