"""``finback config show``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli


def test_each_value_and_its_origin(cli: Cli, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "my.toml"
    path.write_text("batch_tokens = 64\ncontext = 5\n")
    monkeypatch.setenv("FINBACK_CONFIG", str(path))
    monkeypatch.setenv("FINBACK_CONTEXT", "77")
    shown = cli("config", "show", "--port", "9", "--grace", "3", "--json", status=0).json
    assert shown["file"] == str(path)
    assert shown["settings"]["batch_tokens"] == {"value": 64, "origin": str(path)}
    assert shown["settings"]["context"] == {"value": 77, "origin": "FINBACK_CONTEXT"}
    assert shown["settings"]["port"] == {"value": 9, "origin": "--port"}
    assert shown["settings"]["grace_s"] == {"value": 3, "origin": "--grace"}
    assert shown["settings"]["home"] == {"value": str(home), "origin": "FINBACK_HOME"}
    assert shown["settings"]["threads"] == {"value": None, "origin": "default"}
    table = cli("config", "show", status=0).out
    assert [line.split() for line in table.splitlines() if line.startswith("context")] == [
        ["context", "77", "FINBACK_CONTEXT"]
    ]


def test_a_bad_file_is_reported(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "my.toml"
    path.write_text("batch = 64\n")
    monkeypatch.setenv("FINBACK_CONFIG", str(path))
    message, hint = cli("list", status=1).error
    assert "batch in" in message
    assert "batch_tokens" in str(hint)


def test_a_databases_password_is_not_shown(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for dsn in ("postgresql://me:xyzzy@host/db", "host=h password=xyzzy user=me"):
        monkeypatch.setenv("FINBACK_LEDGER", dsn)
        for options in ((), ("--json",)):
            shown = cli("config", "show", *options, status=0).out
            assert "***" in shown
            assert "xyzzy" not in shown
