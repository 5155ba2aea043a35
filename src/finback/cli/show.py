"""``finback show``: what a model is, what it costs, and what Finback does with its files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from finback.cli import options
from finback.config import Settings

if TYPE_CHECKING:
    from finback.cli.facts import Facts
    from finback.hub.catalog import Entry


@click.command()
@options.model_argument
@options.format
@options.json
def show(model: str, format: str | None, json: bool) -> None:
    """Show what a model is, what it costs, and how it is packed."""
    from finback.cli.output import print_json

    settings = options.settings_of(format=format)
    record = _record(model, settings)
    if json:
        print_json(record)
    else:
        _print(record)


def _record(name: str, settings: Settings) -> dict[str, Any]:
    """What is known about ``name``: from its files if they are here, else from the catalog."""
    from finback.cli.facts import facts_of
    from finback.errors import UnknownModel
    from finback.hub import catalog, resolve
    from finback.hub.locate import find_pulled
    from finback.hub.store import Store

    try:
        path = resolve(name, settings)
    except UnknownModel:
        entry = catalog.find(name)
        if entry is None:
            raise
        return _of_catalog(entry)
    pulled = find_pulled(name, Store(settings.home))
    described = _of_files(facts_of(path, settings), settings)
    entry = catalog.find(pulled.name) if pulled else None
    origin = {"name": pulled.name, "source": pulled.source, "revision": pulled.revision} if pulled else {"name": name}
    about = {"title": entry.title, "licence": entry.licence, "distillation": entry.is_distillation} if entry else {}
    return origin | about | {"pulled": pulled is not None} | described


def _of_catalog(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "title": entry.title,
        "licence": entry.licence,
        "distillation": entry.is_distillation,
        "source": str(entry.source),
        "pulled": False,
        "parameters": entry.parameters,
        "active_parameters": entry.active_parameters,
        "formats": {entry.format: entry.size_bytes},
        "size_bytes": entry.size_bytes,
        "kv_bytes_per_token": entry.kv_bytes_per_token,
        "context": entry.context,
    }


def _of_files(facts: Facts, settings: Settings) -> dict[str, Any]:
    from finback.cli.facts import geometry

    config, counts = facts.config, facts.config.parameters
    return {
        "path": str(facts.path),
        "container": facts.checkpoint.kind,
        "architecture": config.model_type,
        "family": config.family,
        "attention": "multi-head latent" if config.is_mla else "grouped-query",
        "parameters": counts.total,
        "active_parameters": counts.active,
        "size_bytes": sum(path.stat().st_size for path in facts.checkpoint.sources),
        "formats": facts.published_formats(),
        "read_bytes_per_token": facts.streamed_bytes_per_token,
        "kv_dtype": facts.kv_dtype,
        "kv_bytes_per_token": facts.kv_bytes_per_token,
        "context": config.max_position_embeddings,
        "geometry": geometry(config),
        "pack": _pack(facts, settings),
        "skipped": _skipped(facts),
        "notes": list(config.notes),
    }


def _pack(facts: Facts, settings: Settings) -> dict[str, Any]:
    """What the pack holds: every change of format, and what it cost in precision."""
    cache_dir = settings.home / "packs"
    path = facts.pack_path(cache_dir)
    lines = facts.report(cache_dir)
    changed = [line for line in lines if line.note or line.error is not None]
    return {
        "path": str(path),
        "exists": path.exists(),
        "size_bytes": facts.plan.nbytes,
        "format": facts.plan.format or "as published",
        "tensors": len(lines),
        "changed": [
            {
                "field": line.field,
                "published": line.published,
                "packed": line.tile,
                "note": line.note,
                "error": line.error,
            }
            for line in changed
        ],
    }


def _skipped(facts: Facts) -> dict[str, Any]:
    return {
        "prediction_layers": facts.config.num_nextn_predict_layers,
        "prediction_tensors": len(facts.binding.skipped),
        "unknown_tensors": list(facts.binding.unused),
    }


def _print(record: dict[str, Any]) -> None:
    from finback.cli.output import count_text, print_facts, size_text

    total, active = record["parameters"], record["active_parameters"]
    every = "" if active == total else f", {count_text(active)} active per token"
    formats = ", ".join(f"{name} {size_text(size)}" for name, size in record["formats"].items())
    print_facts(
        [
            ("name", record["name"]),
            ("model", record.get("title", "") + (" (a distillation)" if record.get("distillation") else "")),
            ("architecture", _architecture(record)),
            ("parameters", f"{count_text(total)}{every}"),
            ("formats", formats),
            ("size", size_text(record["size_bytes"]) + ("" if "path" in record else " to fetch")),
            ("read per token", size_text(record["read_bytes_per_token"]) if "read_bytes_per_token" in record else ""),
            ("KV cache", _kv_text(record)),
            ("context", f"{record['context']} tokens"),
            ("pack", _pack_text(record.get("pack"))),
            ("not run", _skipped_text(record.get("skipped"))),
            ("notes", "\n".join(record.get("notes", ()))),
            ("licence", record.get("licence", "")),
            ("source", record.get("source", "")),
            ("path", record.get("path", f"not on this machine: finback pull {record['name']}")),
        ]
    )


def _architecture(record: dict[str, Any]) -> str:
    if "architecture" not in record:
        return ""
    shape = record["geometry"]
    parts = [record["architecture"], f"{shape['num_hidden_layers']} layers", f"{record['attention']} attention"]
    if "n_routed_experts" in shape:
        shared = f" + {shape['n_shared_experts']} shared" if shape["n_shared_experts"] else ""
        parts.append(f"{shape['n_routed_experts']} experts, {shape['num_experts_per_tok']}{shared} per token")
    return ", ".join(parts)


def _kv_text(record: dict[str, Any]) -> str:
    from finback.cli.output import size_text

    per_token = record["kv_bytes_per_token"]
    whole = size_text(per_token * record["context"])
    kind = f" ({record['kv_dtype']})" if "kv_dtype" in record else ""
    return f"{per_token} bytes per token{kind}; {whole} for the whole context"


def _pack_text(pack: dict[str, Any] | None) -> str:
    """The pack, and each kind of change once with how many tensors it touches."""
    from finback.cli.output import size_text

    if pack is None:
        return ""
    state = pack["path"] if pack["exists"] else "prepared at the first start"
    lines = [f"{size_text(pack['size_bytes'])}, {pack['format']}; {state}"]
    kinds: dict[str, list[float | None]] = {}
    for change in pack["changed"]:
        key = f"{change['published']} -> {change['packed']}: {change['note']}"
        kinds.setdefault(key, []).append(change["error"])
    for key, errors in kinds.items():
        known = [error for error in errors if error is not None]
        worst = f"; relative error up to {max(known):.2%}" if known else ""
        lines.append(f"{len(errors)} tensor{'s' if len(errors) != 1 else ''} {key}{worst}")
    return "\n".join(lines)


def _skipped_text(skipped: dict[str, Any] | None) -> str:
    if skipped is None:
        return ""
    lines = []
    if skipped["prediction_tensors"]:
        layers = skipped["prediction_layers"] or 1
        lines.append(f"{layers} multi-token prediction layer(s), {skipped['prediction_tensors']} tensors")
    if skipped["unknown_tensors"]:
        names = skipped["unknown_tensors"]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        lines.append(f"unknown tensors: {', '.join(names[:5])}{more}")
    return "\n".join(lines)
