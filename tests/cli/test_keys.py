"""``finback keys``."""

from __future__ import annotations

from pathlib import Path

import pytest

from finback.server.keys import KeyStore, Limits
from tests.cli.conftest import Cli


def test_create_shows_the_key_once(cli: Cli, home: Path) -> None:
    outcome = cli("keys", "create", "tools", "--tokens-per-day", "5000", "--concurrency", "2", status=0)
    text = outcome.out.strip()
    found = KeyStore(home).verify(text)
    assert found is not None
    assert found.limits == Limits(tokens_per_day=5000, concurrency=2)
    secret = text.rpartition("-")[2]
    assert secret not in outcome.err
    assert secret not in cli("keys", "list", "--json", status=0).out


def test_json(cli: Cli) -> None:
    made = cli("keys", "create", "tools", "--admin", "--days", "3", "--json", status=0).json
    assert made["key"].startswith(f"fb-{made['id']}-")
    [listed] = cli("keys", "list", "--json", status=0).json
    assert listed == {name: value for name, value in made.items() if name != "key"}
    assert (listed["state"], listed["admin"], listed["name"]) == ("valid", True, "tools")


def test_limit_and_revoke(cli: Cli) -> None:
    cli("keys", "create", "tools", "--requests-per-minute", "5", "--concurrency", "3", status=0)
    changes = ("--concurrency", "0", "--tokens-per-minute", "7")
    assert cli("keys", "limit", "tools", *changes, "--json", status=0).json["limits"] == {
        "requests_per_minute": 5,
        "tokens_per_minute": 7,
        "tokens_per_day": None,
        "concurrency": None,
        "money": None,
    }
    assert "5 requests/min, 7 tokens/min" in cli("keys", "list", status=0).out
    cli("keys", "revoke", "tools", status=0)
    assert "revoked" in cli("keys", "list", status=0).out
    message, hint = cli("keys", "revoke", "tools", status=1).error
    assert "tools" in message
    assert "keys list" in str(hint)


def test_money_needs_prices(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    message, hint = cli("keys", "create", "tools", "--money", "5", status=1).error
    assert "prices" in message
    assert "price_input" in str(hint)
    monkeypatch.setenv("FINBACK_PRICE_INPUT", "0.27")
    monkeypatch.setenv("FINBACK_PRICE_OUTPUT", "1.10")
    assert cli("keys", "create", "tools", "--money", "5", "--json", status=0).json["limits"]["money"] == "5.00"
    assert cli("keys", "limit", "tools", "--money", "none", "--json", status=0).json["limits"]["money"] is None
    assert cli("keys", "create", "others", "--money", "-5", status=1).error


def test_no_keys_yet(cli: Cli) -> None:
    assert "no keys yet" in cli("keys", "list", status=0).err
    assert cli("keys", "list", "--json", status=0).json == []
