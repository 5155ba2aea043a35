"""The program: its commands, its global options, and the one place where errors become two lines and an exit status.

Statuses: 0 done, 1 a reported error, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from finback import __version__
from finback.errors import FinbackError

# Each is a command in the file of its name, which is imported when the command is asked for.
COMMANDS = (
    *("chat", "run", "serve", "pull", "list", "show", "rm", "ps", "usage", "doctor", "version"),
    *("bench", "keys", "config", "completion"),
)


class Program(click.Group):
    """The group of all commands. Whatever a command raises ends here."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names, in the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"finback.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> None:
        """Run the command; an error becomes ``error: ...`` and ``hint: ...`` on stderr, never a traceback."""
        _tolerate_odd_text()
        try:
            super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, click.ClickException, BrokenPipeError):
            raise  # these are click's to handle
        except KeyboardInterrupt as interrupt:
            click.echo(err=True)  # ends the line on which the terminal shows ^C
            raise click.exceptions.Exit(130) from interrupt
        except Exception as fault:
            if ctx.params.get("debug"):
                raise
            report(fault)
            raise click.exceptions.Exit(1) from fault


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


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="Start with `finback chat`: it fetches a small model and talks to you.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, "--version", message="finback %(version)s", help="Print the version and end.")
def app(debug: bool) -> None:
    """Run DeepSeek-family open models on hardware you already own."""
