"""``finback keys``: who may use the server, and how much."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finback.cli.options import Json, settings_of

if TYPE_CHECKING:
    from finback.server.keys import Key, KeyStore, Limits

app = typer.Typer(no_args_is_help=True, help="Make, list, limit and revoke the server's API keys.")

DAY_S = 86_400

Who = Annotated[str, typer.Argument(metavar="KEY", help="A key's name or id.")]
RequestsPerMinute = Annotated[
    int | None, typer.Option("--requests-per-minute", min=0, metavar="N", help="0: no limit.")
]
TokensPerMinute = Annotated[int | None, typer.Option("--tokens-per-minute", min=0, metavar="N", help="0: no limit.")]
TokensPerDay = Annotated[int | None, typer.Option("--tokens-per-day", min=0, metavar="N", help="UTC; 0: no limit.")]
Concurrency = Annotated[
    int | None, typer.Option("--concurrency", min=0, metavar="N", help="Requests at a time; 0: no limit.")
]
Money = Annotated[
    str | None, typer.Option("--money", metavar="AMOUNT", help="What it may spend in all; `none`: no limit.")
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who or what will use it.")],
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    tokens_per_day: TokensPerDay = None,
    concurrency: Concurrency = None,
    money: Money = None,
    days: Annotated[int | None, typer.Option("--days", min=1, max=36_500, help="It expires after so many.")] = None,
    priority: Annotated[
        int, typer.Option("--priority", min=-1000, max=1000, help="Requests of a larger one go first.")
    ] = 0,
    admin: Annotated[bool, typer.Option("--admin", help="It may see metrics and what all keys use.")] = False,
    json: Json = False,
) -> None:
    """Make a key and print it. It is not shown again: only its hash is kept."""
    from finback.cli import output
    from finback.server.keys import Limits

    limits = _changed(Limits(), requests_per_minute, tokens_per_minute, tokens_per_day, concurrency, money)
    expires_at = None if days is None else int(time.time()) + days * DAY_S
    key, text = _store().create(name, limits, admin=admin, priority=priority, expires_at=expires_at)
    if json:
        output.print_json({**_record(key), "key": text})
    else:
        print(text)
        output.note(
            f"key {key.id} for {key.name}: keep it, it is not shown again. Send it as `Authorization: Bearer ...`"
        )


@app.command("list")
def list_(json: Json = False) -> None:
    """List the keys, their states and their limits."""
    from finback.cli import output

    records = [_record(key) for key in _store().all()]
    if json:
        output.print_json(records)
    elif records:
        rows = [(r["id"], r["name"], r["state"], "yes" if r["admin"] else "", _limits_text(r)) for r in records]
        output.print_table(("ID", "NAME", "STATE", "ADMIN", "LIMITS"), rows)
    else:
        output.note("no keys yet: the server is open to this machine, and to no other. `finback keys create NAME`")


@app.command()
def revoke(key: Who) -> None:
    """End a key at once and for good, also on servers that run."""
    from finback.cli.output import note

    store = _store()
    found = store.named(key)
    store.revoke(found)
    note(f"revoked {found.id} ({found.name})")


@app.command()
def limit(
    key: Who,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    tokens_per_day: TokensPerDay = None,
    concurrency: Concurrency = None,
    money: Money = None,
    json: Json = False,
) -> None:
    """Change limits of a key; those that are not named stay. It counts at once, also on servers that run."""
    from finback.cli import output

    store = _store()
    found = store.named(key)
    limits = _changed(found.limits, requests_per_minute, tokens_per_minute, tokens_per_day, concurrency, money)
    store.limit(found, limits)
    record = _record(store.named(found.id))
    if json:
        output.print_json(record)
    else:
        output.note(f"{found.id} ({found.name}): {_limits_text(record) or 'no limits'}")


def _store() -> KeyStore:
    from finback.server.keys import KeyStore

    return KeyStore(settings_of().home)


def _changed(
    limits: Limits,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    tokens_per_day: int | None,
    concurrency: int | None,
    money: str | None,
) -> Limits:
    """``limits`` with what was given put in; 0 takes a limit away."""
    counts = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "tokens_per_day": tokens_per_day,
        "concurrency": concurrency,
    }
    limits = replace(limits, **{name: count or None for name, count in counts.items() if count is not None})
    return limits if money is None else replace(limits, money=_amount(money))


def _amount(money: str) -> int | None:
    from finback.errors import ConfigError
    from finback.meter.money import parse_money, prices_of

    if money == "none":
        return None
    if prices_of(settings_of()) is None:
        raise ConfigError(
            "no prices are set, so no key can have a money limit",
            hint="set price_input and price_output, for a million tokens each",
        )
    return parse_money(money)


def _record(key: Key) -> dict[str, Any]:
    from finback.server.usage import limits_record

    state = "revoked" if key.revoked_at is not None else "expired" if key.expired else "valid"
    times = {name: _time_text(getattr(key, name)) for name in ("created_at", "expires_at", "revoked_at")}
    return {
        "id": key.id,
        "name": key.name,
        "state": state,
        "admin": key.admin,
        "priority": key.priority,
        **times,
        "limits": limits_record(key),
    }


def _time_text(at: int | None) -> str | None:
    from datetime import UTC, datetime

    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()


def _limits_text(record: dict[str, Any]) -> str:
    names = {
        "requests_per_minute": "requests/min",
        "tokens_per_minute": "tokens/min",
        "tokens_per_day": "tokens/day",
        "concurrency": "at a time",
        "money": "money",
    }
    return ", ".join(f"{record['limits'][name]} {text}" for name, text in names.items() if record["limits"][name])
