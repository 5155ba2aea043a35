"""Which books the settings ask for."""

from __future__ import annotations

from finback.config import Settings
from finback.meter.postgres import PostgresBooks
from finback.meter.sqlite import SqliteBooks


def open_books(settings: Settings) -> SqliteBooks | PostgresBooks:
    """The books in the database that ``ledger`` names, or in the file below the home folder."""
    return SqliteBooks(settings.home) if settings.ledger is None else PostgresBooks(settings.ledger)
