"""``finback rm``: give the disk space of a model back."""

from __future__ import annotations

import click

from finback.cli import options


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", shell_complete=options.complete_pulled)
def rm(models: tuple[str, ...]) -> None:
    """Delete models.

    What was prepared from them goes too. Files of a local model stay: only its registration is removed.
    """
    from finback.cli.output import note, size_text
    from finback.hub.locate import find_pulled
    from finback.hub.store import Store
    from finback.weights.packfile import remove_packs_of

    settings = options.settings_of()
    store = Store(settings.home)
    for name in models:
        model = find_pulled(name, store)
        freed = remove_packs_of(settings.home / "packs", model.location) if model else 0
        freed += store.remove(model.name if model else name)
        note(f"removed {model.name if model else name}: {size_text(freed)} freed")
