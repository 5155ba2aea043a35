"""The key file: what it keeps, what it refuses, and that another process's changes are seen at once."""

from __future__ import annotations

import sqlite3
import stat
import time
from pathlib import Path

import pytest

from finback.errors import ConfigError, InvalidRequest
from finback.server.keys import KeyStore, Limits


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "home")


def test_nothing_is_made_by_looking(store: KeyStore, tmp_path: Path) -> None:
    assert not store.any
    assert not store.any_usable
    assert store.all() == []
    assert store.verify("fb-00000000-" + "0" * 64) is None
    assert list(tmp_path.iterdir()) == []


def test_a_key_is_known_by_its_text_alone(store: KeyStore) -> None:
    limits = Limits(requests_per_minute=3, money=5)
    key, text = store.create("tools", limits, admin=True)
    other, _ = store.create("others")
    assert store.verify(text) == key == store.named("tools") == store.named(key.id)
    assert key.limits == limits
    assert (key.admin, other.admin) == (True, False)
    last = "0" if text[-1] != "0" else "1"
    for wrong in ("", "x", text[:-1], text + "0", text.upper(), text[:-1] + last, text + "\n"):
        assert store.verify(wrong) is None
    assert store.verify(text.replace(key.id, other.id)) is None


def test_the_file_does_not_hold_the_key(store: KeyStore, tmp_path: Path) -> None:
    _, text = store.create("tools")
    secret = text.rpartition("-")[2]
    files = list((tmp_path / "home").iterdir())
    for form in (secret.encode(), bytes.fromhex(secret)):
        assert all(form not in path.read_bytes() for path in files)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)


def test_keys_are_all_different(store: KeyStore) -> None:
    texts = {store.create(f"key {i}")[1] for i in range(50)}
    assert len(texts) == 50
    assert len({text.rpartition("-")[2] for text in texts}) == 50


def test_revoked_and_expired_keys_are_known_and_not_usable(store: KeyStore) -> None:
    key, text = store.create("tools")
    late, late_text = store.create("late", expires_at=int(time.time()) - 1)
    store.revoke(key)
    for shown in (store.verify(text), store.verify(late_text)):
        assert shown is not None
        assert not shown.usable
    revoked_at = store.named(key.id).revoked_at
    store.revoke(key)
    assert store.named(key.id).revoked_at == revoked_at
    assert store.any
    assert not store.any_usable
    assert late.expired


def test_names_are_free_again_after_revocation(store: KeyStore) -> None:
    first, _ = store.create("tools")
    with pytest.raises(ConfigError, match="already"):
        store.create("tools")
    store.revoke(first)
    second, _ = store.create("tools")
    assert store.named("tools") == second
    with pytest.raises(InvalidRequest):
        store.named("nobody")


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "\x1b[1m", "a'b;--", "<b>"])
def test_odd_names_are_refused(store: KeyStore, name: str) -> None:
    with pytest.raises(ConfigError):
        store.create(name)


@pytest.mark.parametrize(
    "text",
    ["' OR 1=1 --", "fb-' OR '1'='1-" + "0" * 64, "fb-00000000-" + "0" * 64 + "' --", "\0", "ü" * 100, "%", "fb-%-%"],
)
def test_statements_are_not_keys(store: KeyStore, text: str) -> None:
    store.create("tools")
    assert store.verify(text) is None
    assert len(store.all()) == 1


def test_changes_by_others_are_seen_at_once(store: KeyStore, tmp_path: Path) -> None:
    elsewhere = KeyStore(tmp_path / "home")
    assert not elsewhere.any
    key, text = store.create("tools")
    assert elsewhere.verify(text) == key
    store.limit(key, Limits(concurrency=2))
    assert elsewhere.named("tools").limits == Limits(concurrency=2)
    store.revoke(key)
    found = elsewhere.verify(text)
    assert found is not None
    assert not found.usable


def test_a_broken_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "keys.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(ConfigError, match=r"keys\.sqlite"):
        _ = KeyStore(tmp_path).any


def test_the_secret_is_compared_whole(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison that does not stop at the first difference is used for known and unknown ids alike."""
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    _, text = store.create("tools")
    for attempt in (text, text[:-1] + "x", "fb-00000000-" + "0" * 64, "nonsense"):
        store.verify(attempt)
    assert compared == [(32, 32)] * 4


def test_the_file_is_sound(store: KeyStore, tmp_path: Path) -> None:
    store.create("tools")
    store.close()
    with sqlite3.connect(tmp_path / "home" / "keys.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
