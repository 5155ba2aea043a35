"""``finback list``: the models on this machine, and those that can be pulled by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from finback.cli import options

if TYPE_CHECKING:
    from finback.hub.catalog import Entry
    from finback.hub.store import Store


@click.command()
@click.option("--catalog", is_flag=True, help="All models that Finback knows by name.")
@options.json
def list(catalog: bool, json: bool) -> None:
    """List the models on this machine."""
    from finback.cli import output
    from finback.hub.store import Store

    store = Store(options.settings_of().home)
    records = _catalog(store) if catalog else _pulled(store)
    if json:
        output.print_json(records)
    elif catalog:
        _print_catalog(records)
    elif records:
        _print_pulled(records)
    else:
        output.note(
            "no models on this machine yet; `finback chat` fetches a small one, "
            "`finback list --catalog` shows what can be pulled by name"
        )


def _pulled(store: Store) -> Any:
    from finback.cli.models import record_of

    complete = [record_of(model) for model in store.models()]
    broken = [{"name": item.name, "complete": False, "size_bytes": item.size_bytes} for item in store.incomplete()]
    return complete + broken


def _print_pulled(records: Any) -> None:
    from finback.cli.output import print_table, size_text

    rows = [
        (record["name"], size_text(record["size_bytes"]), record["source"], record["pulled_at"][:10])
        if record["complete"]
        else (record["name"], size_text(record["size_bytes"]), "incomplete: pull it again to go on", "")
        for record in records
    ]
    print_table(("NAME", "SIZE", "SOURCE", "PULLED"), rows, right=("SIZE",))


def _catalog(store: Store) -> Any:
    from finback.hub.catalog import CATALOG

    pulled = {model.name for model in store.models()}
    return [_catalog_record(entry, pulled=entry.name in pulled) for entry in CATALOG]


def _catalog_record(entry: Entry, *, pulled: bool) -> dict[str, Any]:
    return {
        "name": entry.name,
        "title": entry.title,
        "distillation": entry.is_distillation,
        "source": str(entry.source),
        "format": entry.format,
        "size_bytes": entry.size_bytes,
        "size_is_exact": entry.size_is_exact,
        "parameters": entry.parameters,
        "active_parameters": entry.active_parameters,
        "kv_bytes_per_token": entry.kv_bytes_per_token,
        "context": entry.context,
        "licence": entry.licence,
        "sha256": entry.sha256,
        "pulled": pulled,
    }


def _print_catalog(records: Any) -> None:
    from finback.cli.output import count_text, print_table, size_text

    rows = [
        (
            record["name"],
            ("" if record["size_is_exact"] else "~") + size_text(record["size_bytes"]),
            count_text(record["parameters"]),
            count_text(record["active_parameters"]),
            str(record["context"]),
            record["title"],
            "yes" if record["pulled"] else "",
        )
        for record in records
    ]
    columns = ("NAME", "DOWNLOAD", "PARAMETERS", "ACTIVE", "CONTEXT", "MODEL", "HERE")
    print_table(columns, rows, right=("DOWNLOAD", "PARAMETERS", "ACTIVE", "CONTEXT"))
