"""API keys: made at random, shown once, kept as hashes in an SQLite file below the home folder.

A key is ``fb-<id>-<secret>``. The id is public: it names the key in books and logs. The secret has 256 random bits, so
one round of SHA-256 is all the hashing it needs. Another process may change the file at any time (``finback keys
revoke``); a running server sees it with the next request.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import sqlite3
import time
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from finback.errors import ConfigError, InvalidRequest

_ID_BYTES, _SECRET_BYTES = 4, 32
_SHAPE = re.compile(rf"fb-([0-9a-f]{{{2 * _ID_BYTES}}})-[0-9a-f]{{{2 * _SECRET_BYTES}}}")
_NAME = re.compile(r"[\w.@ -]{1,64}")
MAX_LIMIT = 10**12

_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    digest BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER,
    admin INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    requests_per_minute INTEGER,
    tokens_per_minute INTEGER,
    tokens_per_day INTEGER,
    concurrency INTEGER,
    money INTEGER
);
CREATE UNIQUE INDEX IF NOT EXISTS names_in_use ON keys (name) WHERE revoked_at IS NULL;
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may use; None: as much as there is. ``money`` is what it may spend in all, see meter.money."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None  # days begin at midnight UTC
    concurrency: int | None = None
    money: int | None = None


LIMITS = tuple(field.name for field in fields(Limits))


@dataclass(frozen=True, slots=True)
class Key:
    """One key's record. Times are seconds since the epoch."""

    id: str
    name: str
    digest: bytes
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    admin: bool  # may see what all keys do
    priority: int  # requests of a larger one go first
    limits: Limits

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and time.time() >= self.expires_at

    @property
    def usable(self) -> bool:
        """Whether requests with it are served."""
        return self.revoked_at is None and not self.expired


class KeyStore:
    """The keys in one file, which is made with the first key. Not for several threads at a time."""

    def __init__(self, home: Path) -> None:
        self._path = home / "keys.sqlite"
        self._connection: sqlite3.Connection | None = None
        self._seen: int | None = None  # SQLite's count of other connections' changes when the cache was filled
        self._cache: dict[str, Key] = {}
        self._passing: dict[str, Key] = {}  # keys that live as long as this object

    def create_passing(self, name: str) -> str:
        """The text of an admin's key that is never stored."""
        key, text = _new(name, Limits(), admin=True, priority=0, expires_at=None)
        self._passing[key.id] = key
        return text

    def create(
        self,
        name: str,
        limits: Limits | None = None,
        *,
        admin: bool = False,
        priority: int = 0,
        expires_at: int | None = None,
    ) -> tuple[Key, str]:
        """A new key and its text, which is not kept anywhere."""
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot name a key", hint="use up to 64 letters, digits, spaces and . @ _ -")
        key, text = _new(name, limits or Limits(), admin=admin, priority=priority, expires_at=expires_at)
        row = (*(getattr(key, f.name) for f in fields(Key) if f.name != "limits"), *asdict(key.limits).values())
        try:
            with self._open(create=True) as connection:
                connection.execute(f"INSERT INTO keys VALUES ({', '.join('?' * len(row))})", row)
        except sqlite3.IntegrityError:
            raise ConfigError(
                f"there is a key named {name!r} already", hint="revoke it, or take another name"
            ) from None
        self._seen = None
        return key, text

    def all(self) -> list[Key]:
        """Every key that ever was, oldest first."""
        return sorted(self._read().values(), key=lambda key: (key.created_at, key.id))

    def named(self, name_or_id: str) -> Key:
        """The key with this id, or the one that uses this name."""
        for key in self.all():
            if key.id == name_or_id or (key.name == name_or_id and key.revoked_at is None):
                return key
        raise InvalidRequest(f"there is no key {name_or_id!r}", parameter="key", hint="`finback keys list` shows them")

    def revoke(self, key: Key) -> None:
        """End a key, for good."""
        self._change(key, "revoked_at = ifnull(revoked_at, ?)", int(time.time()))

    def limit(self, key: Key, limits: Limits) -> None:
        """Replace a key's limits."""
        values = asdict(limits)
        self._change(key, ", ".join(f"{name} = ?" for name in values), *values.values())

    def verify(self, text: str) -> Key | None:
        """The key that ``text`` is, usable or not. The time taken says nothing about any secret."""
        shape = _SHAPE.fullmatch(text)
        key = (self._read() | self._passing).get(shape.group(1)) if shape else None
        same = hmac.compare_digest(_digest(text), key.digest if key else bytes(32))
        return key if same else None

    @property
    def any(self) -> bool:
        """Whether a key was ever made: from then on a server asks for one, even if all are revoked."""
        return bool(self._read())

    @property
    def any_usable(self) -> bool:
        """Whether somebody can use a server that asks for keys."""
        return any(key.usable for key in self._read().values())

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _change(self, key: Key, assignments: str, *values: int | None) -> None:
        with self._open(create=False) as connection:
            connection.execute(f"UPDATE keys SET {assignments} WHERE id = ?", (*values, key.id))
        self._seen = None

    def _read(self) -> dict[str, Key]:
        if self._connection is None and not self._path.exists():
            return {}
        connection = self._open(create=False)
        with closing(connection.execute("PRAGMA data_version")) as cursor:
            version = cursor.fetchone()[0]
        if version != self._seen:
            with closing(connection.execute("SELECT * FROM keys")) as cursor:
                self._cache = {row[0]: _key(row) for row in cursor}
            self._seen = version
        return self._cache

    def _open(self, *, create: bool) -> sqlite3.Connection:
        if self._connection is None:
            if create:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(self._path, os.O_CREAT, 0o600))
            try:
                connection = sqlite3.connect(self._path, timeout=5, check_same_thread=False)
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(_SCHEMA)
            except sqlite3.Error as error:
                raise ConfigError(f"cannot read the keys in {self._path}: {error}") from error
            self._connection = connection
        return self._connection


def _new(name: str, limits: Limits, *, admin: bool, priority: int, expires_at: int | None) -> tuple[Key, str]:
    key_id = secrets.token_hex(_ID_BYTES)
    text = f"fb-{key_id}-{secrets.token_hex(_SECRET_BYTES)}"
    return Key(key_id, name, _digest(text), int(time.time()), expires_at, None, admin, priority, limits), text


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="replace")).digest()


def _key(row: tuple[Any, ...]) -> Key:
    key_id, name, digest, created_at, expires_at, revoked_at, admin, priority, *limits = row
    return Key(key_id, name, digest, created_at, expires_at, revoked_at, bool(admin), priority, Limits(*limits))
