"""``finback usage``: what was used, from the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import click

from finback.cli import options

if TYPE_CHECKING:
    from finback.config import Settings

By = Literal["key", "day", "model"]  # what sums are over


@click.command()
@click.option("--by", type=click.Choice(get_args(By)), default="key", help="What to sum over.")
@click.option("--key", metavar="KEY", help="Only this key, by name or id.")
@click.option("--days", type=click.IntRange(min=1), metavar="N", help="Only the last so many days, UTC.")
@click.option("--check", is_flag=True, help="First see that the file is sound and its sums are right.")
@options.json
def usage(by: By, key: str | None, days: int | None, check: bool, json: bool) -> None:
    """Show requests, tokens and money by key, day or model."""
    from finback.cli import output

    settings = options.settings_of()
    there = settings.ledger is not None or (settings.home / "ledger.sqlite").exists()
    records = _records(settings, by, key, days, check=check) if there else []
    if json:
        output.print_json(records)
    elif records:
        _print(by, records)
    else:
        output.note("nothing was used yet")


def _records(settings: Settings, by: By, key: str | None, days: int | None, *, check: bool) -> list[dict[str, Any]]:
    from finback.meter.books import open_books
    from finback.meter.ledger import Ledger
    from finback.server.keys import KeyStore
    from finback.server.usage import sums_record

    keys = KeyStore(settings.home)
    key_id = None if key is None else keys.named(key).id
    books = open_books(settings)
    if check:
        books.check_integrity()
    ledger = Ledger(books)
    found = ledger.usage(by, key_id=key_id, days=days)
    ledger.close()
    names = {known.id: {"name": known.name} for known in keys.all()} if by == "key" else {}
    return [{by: group, **names.get(group, {}), **sums_record(sums)} for group, sums in found.items()]


def _print(by: By, records: list[dict[str, Any]]) -> None:
    from finback.cli.output import print_table

    figures = {
        "requests": "REQUESTS",
        "prompt_tokens": "PROMPT",
        "cached_tokens": "CACHED",
        "reasoning_tokens": "REASONING",
        "output_tokens": "OUTPUT",
        "cost": "COST",
    }
    first = [record.get("name") or record[by] or "(no key)" for record in records]
    rows = [(name, *(str(record[figure]) for figure in figures)) for name, record in zip(first, records, strict=True)]
    print_table((by.upper(), *figures.values()), rows, right=tuple(figures.values()))
