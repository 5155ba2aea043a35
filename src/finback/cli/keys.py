"""``finback keys``: who may use the server, and how much."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from finback.cli import options

if TYPE_CHECKING:
    from finback.server.keys import Key, KeyStore, Limits

DAY_S = 86_400

_COUNT = click.IntRange(min=0)
_LIMITS = (
    click.option("--requests-per-minute", type=_COUNT, metavar="N", help="0: no limit."),
    click.option("--tokens-per-minute", type=_COUNT, metavar="N", help="0: no limit."),
    click.option("--tokens-per-day", type=_COUNT, metavar="N", help="UTC; 0: no limit."),
    click.option("--concurrency", type=_COUNT, metavar="N", help="Requests at a time; 0: no limit."),
    click.option("--money", metavar="AMOUNT", help="What it may spend in all; `none`: no limit."),
)
_who = click.argument("key", metavar="KEY", help="A key's name or id.")


def _limits(command: options.Wrapped) -> options.Wrapped:
    """The options that limit a key."""
    for option in reversed(_LIMITS):
        command = option(command)
    return command


@click.group()
def keys() -> None:
    """Make, list, limit and revoke the server's API keys."""


@keys.command()
@click.argument("name", metavar="NAME", help="Who or what will use it.")
@_limits
@click.option("--days", type=click.IntRange(1, 36_500), metavar="N", help="It expires after so many.")
@click.option(
    "--priority", type=click.IntRange(-1000, 1000), default=0, metavar="N", help="Requests of a larger one go first."
)
@click.option("--admin", is_flag=True, help="It may see metrics and what all keys use.")
@options.json
def create(name: str, days: int | None, priority: int, admin: bool, json: bool, **limits: Any) -> None:
    """Make a key and print it. It is not shown again: only its hash is kept."""
    from finback.cli import output
    from finback.server.keys import Limits

    expires_at = None if days is None else int(time.time()) + days * DAY_S
    key, text = _store().create(
        name, _changed(Limits(), **limits), admin=admin, priority=priority, expires_at=expires_at
    )
    if json:
        output.print_json({**_record(key), "key": text})
    else:
        print(text)
        output.note(
            f"key {key.id} for {key.name}: keep it, it is not shown again. Send it as `Authorization: Bearer ...`"
        )


@keys.command("list")
@options.json
def list_(json: bool) -> None:
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


@keys.command()
@_who
def revoke(key: str) -> None:
    """End a key at once and for good, also on servers that run."""
    from finback.cli.output import note

    store = _store()
    found = store.named(key)
    store.revoke(found)
    note(f"revoked {found.id} ({found.name})")


@keys.command()
@_who
@_limits
@options.json
def limit(key: str, json: bool, **limits: Any) -> None:
    """Change limits of a key; those that are not named stay. It counts at once, also on servers that run."""
    from finback.cli import output

    store = _store()
    found = store.named(key)
    store.limit(found, _changed(found.limits, **limits))
    record = _record(store.named(found.id))
    if json:
        output.print_json(record)
    else:
        output.note(f"{found.id} ({found.name}): {_limits_text(record) or 'no limits'}")


def _store() -> KeyStore:
    from finback.server.keys import KeyStore

    return KeyStore(options.settings_of().home)


def _changed(limits: Limits, *, money: str | None, **counts: int | None) -> Limits:
    """``limits`` with what was given put in; 0 takes a limit away."""
    limits = replace(limits, **{name: count or None for name, count in counts.items() if count is not None})
    return limits if money is None else replace(limits, money=_amount(money))


def _amount(money: str) -> int | None:
    from finback.errors import ConfigError
    from finback.meter.money import parse_money, prices_of

    if money == "none":
        return None
    if prices_of(options.settings_of()) is None:
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
