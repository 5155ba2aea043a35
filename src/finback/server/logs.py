"""Logs on stderr: words, or one JSON object a line. Never what was asked or answered, and never a key."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

requests = logging.getLogger("finback.requests")


class JsonFormatter(logging.Formatter):
    """One object for each record: time, level, logger, message, and the record's ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up(log_format: str) -> None:
    """Log to stderr from now on: warnings, and in JSON also a line for every request."""
    handler = logging.StreamHandler(sys.stderr)
    as_json = log_format == "json"
    handler.setFormatter(JsonFormatter() if as_json else logging.Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of every byte for a client that has gone
    logging.getLogger("finback").setLevel(logging.INFO if as_json else logging.WARNING)


def note(event: str, **fields: object) -> None:
    """A line about a request."""
    requests.info(event, extra={"fields": fields})
