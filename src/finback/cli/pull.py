"""``finback pull``: bring a model to this machine."""

from __future__ import annotations

import click

from finback.cli import options


@click.command()
@options.model_argument
@click.option("--select", metavar="FORMAT|FILE", help="Which GGUF of a repository: a format or a file name.")
@click.option("--revision", metavar="NAME", help="Branch, tag or commit of a repository.")
@click.option("--name", metavar="NAME", help="What to call a local model; default: its file name.")
@options.json
def pull(model: str, select: str | None, revision: str | None, name: str | None, json: bool) -> None:
    """Bring a model to this machine.

    MODEL is a name of the catalog, a Hugging Face repository (owner/name, with :FORMAT to pick one of several
    GGUF files), or a local path.

    A pull that breaks off goes on where it stopped when the same command runs again. Every file is checked
    against its published digest before it gets its name. A local model is registered and not copied.
    """
    from finback.cli import output
    from finback.cli.models import record_of, refuse_unsupported, warn_if_too_large
    from finback.cli.progress import pull_progress
    from finback.hub.pull import pull as fetch

    settings = options.settings_of()
    warn_if_too_large(model)
    pulled = fetch(
        model,
        settings,
        name=name,
        revision=revision,
        selection=select,
        progress=pull_progress(),
        inspect=refuse_unsupported,
    )
    if json:
        output.print_json(record_of(pulled))
        return
    files = f"{len(pulled.files)} file{'s' if len(pulled.files) != 1 else ''}"
    output.note(
        f"{pulled.name} is ready: {files}, {output.size_text(pulled.size_bytes)}. Try: finback chat {pulled.name}"
    )
