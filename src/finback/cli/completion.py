"""``finback completion``: what a shell needs to complete commands, options and names of models."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")), help="Which shell it is for.")
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the shell's completion script.

    For bash and zsh, put `eval "$(finback completion bash)"` (or zsh) where the shell starts; for fish, pipe it to
    `source`.
    """
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(ctx.find_root().command, {}, "finback", "_FINBACK_COMPLETE").source())
