"""What ``GET /v1/usage`` and ``finback usage`` tell: sums as JSON, with money in digits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from finback.meter.ledger import Spent, Sums
from finback.meter.money import money_text
from finback.server.keys import Key


def usage_report(key: Key | None, by_day: Mapping[str, Sums], spent: Spent) -> dict[str, Any]:
    """One key's use, day by day; None: everybody's on a server without keys."""
    return {
        "object": "usage",
        "key": None if key is None else {"id": key.id, "name": key.name, "limits": limits_record(key)},
        "tokens_today": spent.tokens_today,
        "money_spent": money_text(spent.money),
        "total": sums_record(Sums(*(sum(column) for column in zip(*by_day.values(), strict=True)))),
        "days": [{"day": day, **sums_record(sums)} for day, sums in by_day.items()],
    }


def sums_record(sums: Sums) -> dict[str, Any]:
    """Sums as JSON shows them."""
    return {**sums._asdict(), "cost": money_text(sums.cost)}


def limits_record(key: Key) -> dict[str, Any]:
    """A key's limits as JSON shows them."""
    money = key.limits.money
    return {**asdict(key.limits), "money": None if money is None else money_text(money)}
